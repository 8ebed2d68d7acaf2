//! Sampling of the next token of each text of a batch on a GPU.

use crate::cuda::{Extent, Source, args, int, source};
use crate::{DType, Device, Error, Result, Tensor};

mod settings;
#[cfg(test)]
mod tests;

pub use settings::Sampling;

pub(crate) static KERNELS: Source = source!("sample", "kernel.cu");
const OP: &str = "sample";

/// The most ids of a vocabulary: sums of weights then fit their 64 bits.
const IDS_MAX: usize = 1 << 22;
/// Bytes of a row's settings, and words of its sums, as the kernels read them.
const SETTINGS_BYTES: usize = 40;
const SUMS_WORDS: usize = 3 * 2048 + 4;
/// The most blocks that share a row, and the logits each should have.
const PARTS_MAX: usize = 64;
const PART: usize = 4096;

/// Chooses a token for each text of a batch on a GPU, from logits `[B, V]` there: what it needs
/// from step to step (settings, how often each token was seen, how many numbers were drawn, the
/// chosen ids) stays on the device, so a choice can be part of recorded work, and the host reads
/// ids alone. Clones share all of it.
///
/// The choice is that of a sort, for the same random numbers: penalties, then
/// `w = exp((logit − largest) / temperature)`; of the tokens in falling order, equals by id, the
/// first `top_k`, of these the first with `Σ w ≥ top_p · (Σ w of these)`, of these those with
/// `w ≥ min_p`; then the first with `Σ w > u · (Σ w of what is left)`, where `u` is number n of
/// `Philox::new(seed, 0x5A4D)` for the n-th draw. A temperature of 0 or `top_k` 1 takes the largest
/// logit and draws nothing. Weights are cut to multiples of 2⁻⁴⁰, sums are exact: the same bits
/// whatever the order of threads.
///
/// Where a logit is NaN, or the largest is infinite, there are no probabilities:
/// [`GpuSampler::read`] says so, and on the device some token is taken.
#[derive(Clone)]
pub struct GpuSampler {
    batch: usize,
    n_ids: usize,
    /// i32 `[B, 1]`.
    ids: Tensor,
    /// The same for the host, i32 `[B, 1]`: −1 where there are no probabilities.
    report: Tensor,
    settings: Tensor,
    /// u64 `[B]`.
    n_drawn: Tensor,
    /// u32 `[B, n_ids]`: twice how often a token was generated, and 1 if it is in the prompt.
    seen: Tensor,
    /// The largest logits of the parts of rows; sums of weights.
    bests: Tensor,
    sums: Tensor,
}

impl GpuSampler {
    /// For `batch` texts and tokens from 0 to `n_ids` − 1; logits beyond are never chosen. Every
    /// text begins greedy, with no token seen.
    ///
    /// # Errors
    /// If there are no texts or ids, more than 4,194,304 ids, the device is the CPU, or its memory
    /// runs out.
    pub fn new(device: Device, batch: usize, n_ids: usize) -> Result<Self> {
        if device == Device::Cpu {
            return Err(Error::NoKernel { op: OP, device });
        }
        let check = |name, value: usize, max, expected| match (1..=max).contains(&value) {
            true => Ok(()),
            false => Err(Error::Argument { op: OP, name, value: value.to_string(), expected }),
        };
        check("batch", batch, 65_535, "1 to 65535")?;
        check("n_ids", n_ids, IDS_MAX, "1 to 4194304")?;
        let zeros = |words: usize| Tensor::zeros_on(device, [batch, words], DType::I32);
        let sampler = Self {
            batch,
            n_ids,
            ids: zeros(1)?,
            report: zeros(1)?,
            settings: zeros(SETTINGS_BYTES / 4)?,
            n_drawn: zeros(2)?,
            seen: zeros(n_ids)?,
            bests: zeros(2 * parts(n_ids))?,
            sums: zeros(SUMS_WORDS)?,
        };
        (0..batch).try_for_each(|row| sampler.set(row, &Sampling::GREEDY, 0))?;
        Ok(sampler)
    }

    /// Sets how sequence `row` is sampled, and how many numbers were drawn for it.
    ///
    /// # Errors
    /// If a setting is out of range, there is no such text, or the device fails.
    pub fn set(&self, row: usize, settings: &Sampling, n_drawn: u64) -> Result<()> {
        self.check_row(row)?;
        if let Some((name, value, expected)) = settings.fault() {
            return Err(Error::Argument { op: OP, name, value: value.to_string(), expected });
        }
        let (cuda, row) = (self.ids.cuda()?, row as u64);
        cuda.upload(self.settings.device_ptr() + SETTINGS_BYTES as u64 * row, &settings.bytes())?;
        cuda.upload(self.n_drawn.device_ptr() + 8 * row, &n_drawn.to_ne_bytes())
    }

    /// Says which tokens text `row` has, for penalties; what it had before is forgotten. Later
    /// choices add themselves. Ids that cannot be chosen are passed over.
    ///
    /// # Errors
    /// If there is no such text, memory runs out or the device fails.
    pub fn set_seen(&self, row: usize, prompt: &[i32], generated: &[i32]) -> Result<()> {
        self.check_row(row)?;
        let cuda = self.ids.cuda()?;
        let at = self.seen.device_ptr() + (4 * row * self.n_ids) as u64;
        cuda.set(at, 0, 4 * self.n_ids)?;
        for (tokens, is_generated) in [(prompt, false), (generated, true)] {
            let n = tokens.len();
            let tokens = Tensor::from_ids(tokens, [n])?.to_device(self.ids.device())?;
            let args = args![&tokens, n as i64, is_generated, at, int(OP, self.n_ids)?];
            let blocks = Extent::elementwise(cuda, n);
            cuda.launch(&KERNELS, DType::F32, "sample_see", blocks, args)?;
        }
        Ok(())
    }

    /// Says which token text `row` has last, as if it had been chosen here, for work that reads
    /// [`GpuSampler::ids`].
    ///
    /// # Errors
    /// If there is no such text or the device fails.
    pub fn set_id(&self, row: usize, id: i32) -> Result<()> {
        self.check_row(row)?;
        self.ids.cuda()?.upload(self.ids.device_ptr() + 4 * row as u64, &id.to_ne_bytes())
    }

    /// Chooses the next token of each text from `logits [B, V]`, `V` at least the number of ids:
    /// they are then in [`GpuSampler::ids`], and count as seen. It does not wait for the device.
    ///
    /// # Errors
    /// If the logits have another shape, are not floats or on another device, or the device fails.
    pub fn pick(&self, logits: &Tensor) -> Result<()> {
        logits.expect_float(OP)?;
        logits.expect_on(OP, self.ids.device())?;
        let (shape, batch) = (logits.shape(), self.batch);
        if shape.len() != 2 || shape[0] != batch || shape[1] < self.n_ids {
            let expected = format!("[{batch}, {} or more]", self.n_ids);
            return Err(Error::Rank { op: OP, found: shape, expected });
        }
        let (cuda, dtype) = (self.ids.cuda()?, logits.dtype());
        let (stride, n, n_parts) = (int(OP, shape[1])?, int(OP, self.n_ids)?, parts(self.n_ids));
        let (settings, seen, bests, sums) = (&self.settings, &self.seen, &self.bests, &self.sums);
        let mut extent = Extent::line(n_parts, 256);
        extent.grid[1] = batch as u32;
        for kernel in ["sample_best", "sample_bins"] {
            let args = args![logits, stride, n, settings, seen, bests, sums];
            cuda.launch(&KERNELS, dtype, kernel, extent, args)?;
        }
        let n_parts = int(OP, n_parts)?;
        let (n_drawn, ids, report) = (&self.n_drawn, &self.ids, &self.report);
        let args =
            args![logits, stride, n, settings, seen, bests, n_parts, sums, n_drawn, ids, report];
        // Short rows have few logits for each thread, and a small block's barriers are cheaper.
        let extent = Extent::line(batch, if self.n_ids > PART { 512 } else { 128 });
        cuda.launch(&KERNELS, dtype, "sample_pick", extent, args)
    }

    /// The chosen ids, i32 `[B, 1]`, on the device: the tokens of the next step. Every choice
    /// overwrites them.
    #[must_use]
    pub fn ids(&self) -> &Tensor {
        &self.ids
    }

    /// The ids that were chosen last, on the host; −1 where there were no probabilities to choose
    /// by, because a logit was NaN or the largest infinite. It waits for the device.
    ///
    /// # Errors
    /// If the device fails.
    pub fn read(&self) -> Result<Vec<i32>> {
        Ok(self.report.to_host()?.ids().to_vec())
    }

    /// How many texts there are.
    #[must_use]
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// One more than the largest id that is chosen.
    #[must_use]
    pub fn n_ids(&self) -> usize {
        self.n_ids
    }

    /// Whether both are clones of one.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.ids.shares_storage(&other.ids)
    }

    fn check_row(&self, row: usize) -> Result<()> {
        match row < self.batch {
            true => Ok(()),
            false => Err(Error::Argument {
                op: OP,
                name: "row",
                value: row.to_string(),
                expected: "less than the number of texts",
            }),
        }
    }
}

/// Blocks that share a row.
fn parts(n_ids: usize) -> usize {
    n_ids.div_ceil(PART).min(PARTS_MAX)
}
