//! Decoding one token of each sequence. On the CPU the host samples it. On a GPU a kernel does, so
//! that the logits `[B, V]` need not be copied to the host for every token.

use lehr_model::{DecodeGraph, Model, PagedCache};
use lehr_tensor::inplace::sample::GpuSampler;
use lehr_tensor::{Device, Tensor};

use super::sequence::{Choice, Sequence};
use crate::{Result, TokenLogprob};

/// Runs the last token of each sequence and chooses the next.
pub(super) trait Step {
    /// Prepares the row of a sequence that enters decoding.
    fn begin(&mut self, sequence: &Sequence) -> Result<()>;

    /// Runs the last tokens as one batch and chooses the next. An inner error concerns one
    /// sequence, an outer error the batch.
    fn next(
        &mut self,
        model: &Model,
        cache: &mut PagedCache,
        sequences: &mut [&mut Sequence],
    ) -> Result<Vec<Result<Choice>>>;
}

/// Creates the step for the device of a model.
pub(super) fn step_for(model: &Model, cache: &PagedCache, n_ids: usize) -> Result<Box<dyn Step>> {
    let (device, _) = model.compute();
    if device == Device::Cpu {
        return Ok(Box::new(HostStep { n_ids }));
    }
    let sampler = GpuSampler::new(device, cache.max_sequences(), n_ids)?;
    Ok(Box::new(GpuStep { sampler, graph: DecodeGraph::new(model, cache)?, n_ids }))
}

/// Returns the row and the last token of each sequence.
fn last(sequences: &[&mut Sequence]) -> Vec<(usize, i32)> {
    sequences.iter().filter_map(|s| Some((s.row, *s.tokens.last()?))).collect()
}

/// Copies one row of logits to the host, without the ids that must not be chosen.
pub(super) fn on_host(logits: &Tensor, n_ids: usize) -> Result<Vec<f32>> {
    Ok(logits.to_host()?.data()[..n_ids].to_vec())
}

/// A step whose tokens are sampled on the host.
struct HostStep {
    /// Number of ids that may be chosen.
    n_ids: usize,
}

impl Step for HostStep {
    fn begin(&mut self, _: &Sequence) -> Result<()> {
        Ok(())
    }

    fn next(
        &mut self,
        model: &Model,
        cache: &mut PagedCache,
        sequences: &mut [&mut Sequence],
    ) -> Result<Vec<Result<Choice>>> {
        let logits = cache.next_logits(model, &last(sequences))?;
        let rows = logits.data().chunks(logits.shape().last_dim());
        let choose = |(sequence, row): (&mut &mut Sequence, &[f32])| {
            sequence.choose(row[..self.n_ids].to_vec())
        };
        Ok(sequences.iter_mut().zip(rows).map(choose).collect())
    }
}

/// A step whose tokens are sampled on the GPU. Only rows with requested log-probabilities are
/// copied to the host.
struct GpuStep {
    sampler: GpuSampler,
    /// The recorded forward pass, if the model's step can be recorded.
    graph: Option<DecodeGraph>,
    n_ids: usize,
}

impl GpuStep {
    /// Runs the forward pass kernel by kernel and returns the logits of all rows, `[B, V]`.
    fn launch(
        &self,
        model: &Model,
        cache: &mut PagedCache,
        last: &[(usize, i32)],
    ) -> Result<Tensor> {
        let logits = cache.next_logits(model, last)?;
        // The sampler works on all rows of the cache. Rows without a sequence get the logits of the
        // first one, and their choices are ignored.
        let mut of_row = vec![0; self.sampler.batch()];
        last.iter().enumerate().for_each(|(i, (row, _))| of_row[*row] = i as i32);
        let of_row = Tensor::from_ids(&of_row, [of_row.len()])?;
        let logits = logits.gather_rows(&of_row)?;
        self.sampler.pick(&logits)?;
        Ok(logits)
    }
}

impl Step for GpuStep {
    fn begin(&mut self, sequence: &Sequence) -> Result<()> {
        let (sampling, n_drawn) = sequence.sampler.state();
        self.sampler.set(sequence.row, &sampling, n_drawn)?;
        let (prompt, generated) = sequence.parts();
        if sampling.has_penalty() {
            self.sampler.set_seen(sequence.row, prompt, generated)?;
        }
        if let Some(last) = sequence.tokens.last() {
            self.sampler.set_id(sequence.row, *last)?;
        }
        Ok(())
    }

    fn next(
        &mut self,
        model: &Model,
        cache: &mut PagedCache,
        sequences: &mut [&mut Sequence],
    ) -> Result<Vec<Result<Choice>>> {
        let last = last(sequences);
        let logits = match &mut self.graph {
            Some(graph) => graph.choose_next(model, &self.sampler, cache, &last)?,
            None => self.launch(model, cache, &last)?,
        };
        let ids = self.sampler.read()?;
        let mut choose = |sequence: &mut &mut Sequence| {
            let row = sequence.row;
            // A negative id only signals logits that are not finite. The host then reads them to
            // report the details, and fails there.
            let Ok(token) = u32::try_from(ids[row]) else {
                let logits = on_host(&logits.slice(0, row..row + 1)?, self.n_ids)?;
                return sequence.choose(logits);
            };
            sequence.sampler.count_choice();
            let logprob = match sequence.logprobs {
                None => None,
                Some(n) => {
                    let logits = on_host(&logits.slice(0, row..row + 1)?, self.n_ids)?;
                    Some(TokenLogprob::new(&logits, token, n))
                }
            };
            Ok(Choice { token, logprob })
        };
        Ok(sequences.iter_mut().map(&mut choose).collect())
    }
}
