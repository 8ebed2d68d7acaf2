//! One more token for each sequence: on the CPU the host chooses it, on a GPU the device does.

use lehr_model::{DecodeGraph, Model, PagedCache};
use lehr_tensor::inplace::sample::GpuSampler;
use lehr_tensor::{Device, Tensor};

use super::sequence::{Choice, Sequence};
use crate::{Result, TokenLogprob};

/// Runs the last tokens of sequences and chooses those after them.
pub(super) trait Step {
    /// Prepares for a sequence whose tokens have all been run but the last.
    fn begin(&mut self, sequence: &Sequence) -> Result<()>;

    /// Runs the last token of each sequence and chooses the next. The inner errors are those of
    /// single sequences.
    fn next(
        &mut self,
        model: &Model,
        cache: &mut PagedCache,
        sequences: &mut [&mut Sequence],
    ) -> Result<Vec<Result<Choice>>>;
}

/// How a model is stepped where it is.
pub(super) fn step_for(model: &Model, cache: &PagedCache, n_ids: usize) -> Result<Box<dyn Step>> {
    let (device, _) = model.compute();
    if device == Device::Cpu {
        return Ok(Box::new(HostStep { n_ids }));
    }
    let sampler = GpuSampler::new(device, cache.max_sequences(), n_ids)?;
    Ok(Box::new(GpuStep { sampler, graph: DecodeGraph::new(model, cache)?, n_ids }))
}

/// Rows and last tokens of sequences.
fn last(sequences: &[&mut Sequence]) -> Vec<(usize, i32)> {
    sequences.iter().filter_map(|s| Some((s.row, *s.tokens.last()?))).collect()
}

/// The logits of ids that may be chosen, from those of one row on any device.
pub(super) fn on_host(logits: &Tensor, n_ids: usize) -> Result<Vec<f32>> {
    Ok(logits.to_host()?.data()[..n_ids].to_vec())
}

/// The host chooses.
struct HostStep {
    /// One more than the largest id that may be chosen.
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

/// The GPU chooses. Logits stay there, except for rows whose log-probabilities are wanted.
struct GpuStep {
    sampler: GpuSampler,
    /// Recorded work, where a model's step can be recorded.
    graph: Option<DecodeGraph>,
    n_ids: usize,
}

impl GpuStep {
    /// Runs the work launch by launch, and gives the logits of all rows `[B, V]`.
    fn launch(
        &self,
        model: &Model,
        cache: &mut PagedCache,
        last: &[(usize, i32)],
    ) -> Result<Tensor> {
        let logits = cache.next_logits(model, last)?;
        // The sampler chooses for all rows; nobody reads the choices of those without a sequence.
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
            // The GPU says of logits that are no numbers only that they are none.
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
