//! Generation on a GPU, one token per text at a time, by work that is recorded once.

use lehr_tensor::cuda::{self, Graph};
use lehr_tensor::{DType, Device, Tensor};

use crate::arch::Activations;
use crate::{Error, KvCache, Model, Result, Tokens};

/// The next token of a few texts on a GPU. The first is computed as ever; the second time the work is recorded, and from then on it is
/// only started, so that the host, which needs microseconds for each of hundreds of launches, no longer decides the speed.
///
/// It belongs to one model and one cache.
pub struct DecodeGraph {
    device: usize,
    tokens: Tokens,
    /// Positions filled, without and with the new one.
    lens: (Tensor, Tensor),
    /// The result, where recorded work writes it.
    logits: Option<Tensor>,
    graph: Option<Graph>,
}

impl DecodeGraph {
    /// The most texts at once: more are not bound by the reading of weights.
    pub const BATCH_MAX: usize = 8;

    /// Room for the inputs of `batch` texts; `None` where there is nothing to record: on the CPU, and for models that derive their mask
    /// from the tokens.
    ///
    /// # Errors
    /// If memory runs out or the device fails.
    pub fn new(model: &Model, cache: &KvCache, batch: usize) -> Result<Option<Self>> {
        let (Device::Cuda(device), _) = model.compute() else { return Ok(None) };
        if batch > Self::BATCH_MAX || !model.is_causal() || !cache.prefixes().is_empty() {
            return Ok(None);
        }
        let numbers = |shape: &[usize]| Tensor::zeros_on(Device::Cuda(device), shape, DType::I32);
        let row = [batch, 1];
        Ok(Some(Self {
            device,
            tokens: Tokens {
                ids: numbers(&row)?,
                positions: numbers(&row)?,
                segment_starts: None,
                activations: Activations::Keep,
            },
            lens: (numbers(&[1])?, numbers(&[1])?),
            logits: None,
            graph: None,
        }))
    }

    /// Logits `[B, V]`, on the device, after one more token of each text; the cache is advanced. They are overwritten by the next call.
    ///
    /// # Errors
    /// If there is no room, an id is outside of the vocabulary, or the device fails.
    pub fn next_logits(
        &mut self,
        model: &Model,
        ids: &[i32],
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        let (len, spec) = (cache.len(), model.spec());
        let limit = cache.capacity().min(spec.max_positions);
        if len + 1 > limit {
            return Err(Error::TooLong { what: "the number of tokens", found: len + 1, limit });
        }
        let is_outside =
            |id: &&i32| usize::try_from(**id).is_err() || **id as usize >= spec.vocab_size;
        if let Some(bad) = ids.iter().find(is_outside) {
            return Err(Error::config("token id", bad, format!("0 to {}", spec.vocab_size - 1)));
        }
        let position = len as i32;
        cuda::overwrite_ids(&self.tokens.ids, ids)?;
        cuda::overwrite_ids(&self.tokens.positions, &vec![position; ids.len()])?;
        cuda::overwrite_ids(&self.lens.0, &[position])?;
        cuda::overwrite_ids(&self.lens.1, &[position + 1])?;
        if self.graph.is_none() {
            let logits = self.run_or_record(model, cache)?;
            if self.graph.is_none() {
                return Ok(logits);
            }
        } else {
            cache.advance(1);
        }
        if let Some(graph) = &self.graph {
            graph.launch()?;
        }
        self.logits.clone().ok_or(Error::Stored { doing: "running what was recorded" })
    }

    /// The first time runs the work, the second time records it.
    fn run_or_record(&mut self, model: &Model, cache: &mut KvCache) -> Result<Tensor> {
        cache.set_on_gpu(Some(self.lens.clone()));
        let result = match &self.logits {
            None => model.next_logits(&self.tokens, cache),
            Some(_) => {
                let mut recorded = None;
                let graph = Graph::record(self.device, || {
                    recorded = Some(model.next_logits(&self.tokens, cache));
                    Ok(())
                });
                match (graph, recorded) {
                    (Ok(graph), Some(Ok(logits))) => {
                        self.graph = Some(graph);
                        Ok(logits)
                    }
                    (_, Some(Err(error))) => Err(error),
                    (Err(error), _) => Err(error.into()),
                    (Ok(_), None) => unreachable!("recording runs its body"),
                }
            }
        };
        cache.set_on_gpu(None);
        let logits = result?;
        self.logits = Some(logits.clone());
        Ok(logits)
    }
}
