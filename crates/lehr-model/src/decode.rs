//! Generation on a GPU, one token per text at a time, by work that is recorded once.

use lehr_tensor::cuda::{self, Graph};
use lehr_tensor::inplace::sample::{self, GpuSampler};
use lehr_tensor::{DType, Device, Tensor};

use crate::cache::Place;
use crate::{Error, KvCache, Model, Result, Tokens};

/// The next token of a few texts on a GPU. The first is computed as ever; the second time the work
/// is recorded, and from then on it is only started, so that the host, which needs microseconds for
/// each of hundreds of launches, no longer decides the speed.
///
/// It belongs to one model and one cache.
pub struct DecodeGraph {
    device: usize,
    /// What the host gives; the positions also of what the device chose.
    tokens: Tokens,
    /// Positions filled, without and with the new one.
    lens: (Tensor, Tensor),
    /// The length that positions and lengths on the device are set for, if they are.
    len_on_gpu: Option<usize>,
    /// What gives logits, and they.
    logits: (Option<Tensor>, Option<Graph>),
    /// What chooses tokens, and with what: its memory stays as long as the work.
    choice: (Option<GpuSampler>, Option<Graph>),
}

impl DecodeGraph {
    /// Room for the inputs of `batch` texts; `None` where there is nothing to record: on the CPU,
    /// and for texts with a bidirectional or a learned prefix.
    ///
    /// # Errors
    /// If memory runs out or the device fails.
    pub fn new(model: &Model, cache: &KvCache, batch: usize) -> Result<Option<Self>> {
        let (Device::Cuda(device), _) = model.compute() else { return Ok(None) };
        if !model.is_causal() || cache.prefix_len() > 0 || model.kv_prefix_len() > 0 {
            return Ok(None);
        }
        let numbers = |shape: &[usize]| Tensor::zeros_on(Device::Cuda(device), shape, DType::I32);
        let row = [batch, 1];
        Ok(Some(Self {
            device,
            tokens: Tokens::causal(numbers(&row)?, numbers(&row)?)?,
            lens: (numbers(&[1])?, numbers(&[1])?),
            len_on_gpu: None,
            logits: (None, None),
            choice: (None, None),
        }))
    }

    /// Logits `[B, V]`, on the device, after one more token of each text; the cache is advanced.
    /// They are overwritten by the next call.
    ///
    /// # Errors
    /// If there is no room, an id is outside of the vocabulary, or the device fails.
    pub fn next_logits(
        &mut self,
        model: &Model,
        ids: &[i32],
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        let (len, vocab_size) = (room_for_one(model, cache)?, model.spec().vocab_size);
        let is_outside = |id: &&i32| usize::try_from(**id).is_err() || **id as usize >= vocab_size;
        if let Some(bad) = ids.iter().find(is_outside) {
            return Err(Error::config("token id", bad, format!("0 to {}", vocab_size - 1)));
        }
        cuda::overwrite_ids(&self.tokens.ids, ids)?;
        self.set_len(len)?;
        self.len_on_gpu = None;
        if self.logits.1.is_none() {
            let work = |cache: &mut KvCache| model.next_logits(&self.tokens, cache);
            let has_run = self.logits.0.is_some();
            let (logits, graph) = run_or_record(self.device, self.place(), has_run, cache, work)?;
            self.logits = (Some(logits), graph);
        } else {
            cache.advance(1);
        }
        if let Some(graph) = &self.logits.1 {
            graph.launch()?;
        }
        self.logits.0.clone().ok_or(Error::Recorded {
            doing: "reading the logits of recorded work",
            found: "work that chooses the token on the device",
            expected: "work that was recorded for its logits",
        })
    }

    /// Appends to each text the token that `sampler` chose last, and chooses the next: nothing is
    /// uploaded, the host waits for nothing, and finds the ids with [`GpuSampler::read`]. The cache
    /// is advanced.
    ///
    /// # Errors
    /// If there is no room, the sampler is for another number of texts or more ids than the
    /// vocabulary has, or the device fails.
    pub fn choose_next(
        &mut self,
        model: &Model,
        sampler: &GpuSampler,
        cache: &mut KvCache,
    ) -> Result<()> {
        let (len, vocab_size) = (room_for_one(model, cache)?, model.spec().vocab_size);
        check_sampler(sampler, self.tokens.batch(), vocab_size)?;
        if self.len_on_gpu != Some(len) {
            self.set_len(len)?;
        }
        // Until all is well.
        self.len_on_gpu = None;
        if self.choice.0.as_ref().is_some_and(|old| !old.is_same(sampler)) {
            self.choice = (None, None);
        }
        if self.choice.1.is_none() {
            let tokens = Tokens::causal(sampler.ids().clone(), self.tokens.positions.clone())?;
            let work = |cache: &mut KvCache| {
                sampler.pick(&model.next_logits(&tokens, cache)?)?;
                Ok(sample::increment([&tokens.positions, &self.lens.0, &self.lens.1])?)
            };
            let has_run = self.choice.0.is_some();
            let ((), graph) = run_or_record(self.device, self.place(), has_run, cache, work)?;
            self.choice = (Some(sampler.clone()), graph);
        } else {
            cache.advance(1);
        }
        if let Some(graph) = &self.choice.1 {
            graph.launch()?;
        }
        self.len_on_gpu = Some(len + 1);
        Ok(())
    }

    /// Where recorded work writes.
    fn place(&self) -> Place {
        Place::EndOnGpu(self.lens.0.clone(), self.lens.1.clone())
    }

    /// Uploads the position of the next token, behind `len` others.
    fn set_len(&self, len: usize) -> Result<()> {
        let position = len as i32;
        cuda::overwrite_ids(&self.tokens.positions, &vec![position; self.tokens.batch()])?;
        cuda::overwrite_ids(&self.lens.0, &[position])?;
        Ok(cuda::overwrite_ids(&self.lens.1, &[position + 1])?)
    }
}

/// An error unless `sampler` chooses for `batch` texts from ids of the vocabulary.
pub(crate) fn check_sampler(sampler: &GpuSampler, batch: usize, vocab_size: usize) -> Result<()> {
    if sampler.batch() == batch && sampler.n_ids() <= vocab_size {
        return Ok(());
    }
    Err(Error::Tensor(lehr_tensor::Error::Argument {
        op: "choosing tokens",
        name: "sampler",
        value: format!("for {} texts and {} ids", sampler.batch(), sampler.n_ids()),
        expected: "the texts of the cache and at most the ids of the vocabulary",
    }))
}

/// The positions filled, if there is room for one more.
fn room_for_one(model: &Model, cache: &KvCache) -> Result<usize> {
    let (len, limit) = (cache.len(), cache.capacity().min(model.spec().max_positions));
    match len < limit {
        true => Ok(len),
        false => Err(Error::TooLong { what: "the number of tokens", found: len + 1, limit }),
    }
}

/// Runs the work, for which the cache is at `place`; if it has run before, records it instead, to
/// be started.
pub(crate) fn run_or_record<R>(
    device: usize,
    place: Place,
    has_run: bool,
    cache: &mut KvCache,
    work: impl FnOnce(&mut KvCache) -> Result<R>,
) -> Result<(R, Option<Graph>)> {
    cache.set_place(place);
    let result = if has_run {
        let mut recorded = None;
        let graph = Graph::record(device, || {
            recorded = Some(work(cache));
            Ok(())
        });
        match (graph, recorded) {
            (Ok(graph), Some(Ok(result))) => Ok((result, Some(graph))),
            (_, Some(Err(error))) => Err(error),
            (Err(error), _) => Err(error.into()),
            (Ok(_), None) => unreachable!("recording runs its body"),
        }
    } else {
        work(cache).map(|result| (result, None))
    };
    cache.set_place(Place::End);
    result
}
