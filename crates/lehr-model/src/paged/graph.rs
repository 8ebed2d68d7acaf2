//! One more token for each sequence on a GPU, as a recorded CUDA graph.

use lehr_tensor::cuda::{self, Graph};
use lehr_tensor::inplace::{self, sample::GpuSampler};
use lehr_tensor::ops::attention::Pages;
use lehr_tensor::{DType, Device, Tensor};

use super::PagedCache;
use crate::{Error, Model, Result, Tokens};

/// Generation of the next tokens of a [`PagedCache`] on a GPU. The first step runs normally. The
/// second is recorded as a CUDA graph, and later steps replay it. A step has hundreds of launches
/// that cost the host microseconds each; replaying removes that limit.
///
/// The recorded work covers all rows of the cache. It reads page tables and lengths on the device,
/// so sequences may join and leave between two steps. Rows without a sequence compute unused
/// results. When the pools of the cache move, the work is recorded again.
///
/// It belongs to one model and one cache.
pub struct DecodeGraph {
    device: usize,
    positions: Tensor,
    pages: Pages,
    /// Page table and lengths (with the new token) on the device, if known. Positions follow from
    /// the lengths.
    known: Option<(Vec<i32>, Vec<i32>)>,
    /// Number of pool reallocations when the work was recorded.
    n_moves: usize,
    /// The sampler and the logits `[B, V]` of the recorded work. They are kept alive as long as it.
    run: Option<(GpuSampler, Tensor)>,
    graph: Option<Graph>,
}

impl DecodeGraph {
    /// Allocates the inputs. Returns `None` if recording is not possible: on the CPU, and for
    /// models whose host code derives positions, masks or previous tokens from the tokens.
    ///
    /// # Errors
    /// If memory runs out or the device fails.
    pub fn new(model: &Model, cache: &PagedCache) -> Result<Option<Self>> {
        let (Device::Cuda(device), _) = model.compute() else { return Ok(None) };
        if model.has_prefix() || model.reads_previous_token() {
            return Ok(None);
        }
        let zeros = |shape: &[usize]| Tensor::zeros_on(Device::Cuda(device), shape, DType::I32);
        let batch = cache.max_sequences();
        let table = zeros(&[batch, PagedCache::pages_for(cache.context())])?;
        let pages = Pages::new(table, zeros(&[batch])?)?;
        let positions = zeros(&[batch, 1])?;
        let (known, run, graph) = (None, None, None);
        Ok(Some(Self { device, positions, pages, known, n_moves: 0, run, graph }))
    }

    /// Appends the sampled token of each sequence in `last` (row and token), which is the one
    /// `sampler` chose last for that row, and samples the next. The host does not wait. It uploads
    /// only changes other than one more token per sequence, and reads the ids with
    /// [`GpuSampler::read`]. Returns the logits `[B, V]` of all rows on the device; the next call
    /// overwrites them.
    ///
    /// # Errors
    /// If a row has no sequence, a sequence has its maximum length, there are too few pages, the
    /// sampler has another number of sequences or more ids than the vocabulary, or the device
    /// fails.
    pub fn choose_next(
        &mut self,
        model: &Model,
        sampler: &GpuSampler,
        cache: &mut PagedCache,
        last: &[(usize, i32)],
    ) -> Result<Tensor> {
        check_sampler(sampler, cache.max_sequences(), model.spec().vocab_size)?;
        let lens = cache.begin_step(last)?;
        let longest = lens.iter().copied().max().unwrap_or(0);
        let (table, mut lengths) = self.upload(cache, last)?;
        if self.run.as_ref().is_some_and(|(old, _)| !old.is_same(sampler)) {
            (self.run, self.graph) = (None, None);
        }
        if self.n_moves != cache.n_moves {
            (self.graph, self.n_moves) = (None, cache.n_moves);
        }
        let logits = match (&self.run, &self.graph) {
            (Some((_, logits)), Some(_)) => logits.clone(),
            _ => {
                let (logits, graph) = self.run_or_record(model, sampler, cache, longest)?;
                (self.run, self.graph) = (Some((sampler.clone(), logits.clone())), graph);
                logits
            }
        };
        if let Some(graph) = &self.graph {
            graph.launch()?;
        }
        last.iter().for_each(|(row, id)| cache.advance(*row, &[*id]));
        lengths.iter_mut().for_each(|n| *n += i32::from(*n > 0));
        self.known = Some((table, lengths));
        Ok(logits)
    }

    /// Runs the work if it has not run before; otherwise records it.
    fn run_or_record(
        &self,
        model: &Model,
        sampler: &GpuSampler,
        cache: &mut PagedCache,
        longest: usize,
    ) -> Result<(Tensor, Option<Graph>)> {
        let tokens = Tokens::causal(sampler.ids().clone(), self.positions.clone())?;
        let work = |pools: &mut crate::KvCache| {
            let logits = model.next_logits(&tokens, pools)?;
            sampler.pick(&logits)?;
            inplace::advance_texts(&self.positions, self.pages.lengths())?;
            Ok(logits)
        };
        cache.run((&[], longest), self.pages.clone(), |pools| {
            if self.run.is_none() {
                return Ok((work(pools)?, None));
            }
            let mut recorded = None;
            let graph = Graph::record(self.device, || {
                recorded = Some(work(pools));
                Ok(())
            });
            match (graph, recorded) {
                (Ok(graph), Some(Ok(logits))) => Ok((logits, Some(graph))),
                (_, Some(Err(error))) => Err(error),
                (Err(error), _) => Err(error.into()),
                (Ok(_), None) => unreachable!("recording runs its body"),
            }
        })
    }

    /// Updates page table, lengths and positions on the device for these sequences, including the
    /// new tokens, and returns table and lengths. The contents count as known again after the work.
    fn upload(
        &mut self,
        cache: &PagedCache,
        last: &[(usize, i32)],
    ) -> Result<(Vec<i32>, Vec<i32>)> {
        let max = self.pages.table().shape()[1];
        let mut table = vec![0; cache.max_sequences() * max];
        let mut lengths = vec![0; cache.max_sequences()];
        for (row, _) in last {
            let Some(sequence) = &cache.sequences[*row] else { continue };
            table[row * max..][..sequence.pages.len()].copy_from_slice(&sequence.pages);
            lengths[*row] = sequence.ids.len() as i32 + 1;
        }
        let known = self.known.take();
        if known.as_ref().is_none_or(|known| known.0 != table) {
            cuda::overwrite_ids(self.pages.table(), &table)?;
        }
        if known.is_none_or(|known| known.1 != lengths) {
            cuda::overwrite_ids(self.pages.lengths(), &lengths)?;
            let positions: Vec<i32> = lengths.iter().map(|n| (n - 1).max(0)).collect();
            cuda::overwrite_ids(&self.positions, &positions)?;
        }
        Ok((table, lengths))
    }
}

/// Checks that `sampler` chooses for `batch` sequences from ids of the vocabulary.
fn check_sampler(sampler: &GpuSampler, batch: usize, vocab_size: usize) -> Result<()> {
    if sampler.batch() == batch && sampler.n_ids() <= vocab_size {
        return Ok(());
    }
    Err(Error::Tensor(lehr_tensor::Error::Argument {
        op: "choosing tokens",
        name: "sampler",
        value: format!("for {} sequences and {} ids", sampler.batch(), sampler.n_ids()),
        expected: "the sequences of the cache and at most the ids of the vocabulary",
    }))
}
