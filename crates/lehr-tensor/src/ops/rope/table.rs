//! Cosines and sines of all tokens and frequencies.

use std::sync::{Arc, Mutex, PoisonError};

use lehr_kernels::threads::{self, SharedMut};

use super::cuda;
use crate::{DType, Device, Error, Result, Tensor};

/// The two dimensions of a head that form a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    /// Dimension `i` with `i + R/2`: LLaMA and most models on Hugging Face.
    HalfSplit,
    /// Dimension `2i` with `2i + 1`: GPT-J, ChatGLM2 and the original paper.
    AdjacentPairs,
}

/// The pairs of a table: a layout, or two half-split groups one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pairs {
    Layout(RopeLayout),
    TwoHalves,
}

/// Cosine and sine per token and frequency, computed where and when they are first needed, and
/// shared by all layers. Clones share the numbers.
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// One or two streams of positions, on the CPU.
    positions: Vec<Tensor>,
    inv_freq: Arc<[f64]>,
    amplitude: f64,
    pairs: Pairs,
    /// Results so far, per device.
    angles: Arc<Mutex<Vec<(Device, Angles)>>>,
}

/// Both `[N, R/2]`, f32.
#[derive(Clone, Debug)]
pub(super) struct Angles {
    pub(super) cos: Tensor,
    pub(super) sin: Tensor,
}

impl RopeTable {
    /// The table of `cos(p ω) · amplitude` and `sin(p ω) · amplitude` for each position `p` and
    /// inverse frequency `ω`. Angles are computed in f64, the results rounded to f32.
    ///
    /// | name | meaning |
    /// |---|---|
    /// | `positions` | `[B, T]`, i32 |
    /// | `inv_freq` | R/2 numbers in radians per position, see [`super::frequencies`] |
    /// | `amplitude` | multiplies cosine and sine: YaRN's attention factor, else 1 |
    ///
    /// # Errors
    /// If `positions` are not i32, a number is not finite or memory runs out.
    pub fn new(
        positions: &Tensor,
        inv_freq: &[f64],
        layout: RopeLayout,
        amplitude: f64,
    ) -> Result<Self> {
        check_finite("amplitude", &[amplitude])?;
        Self::build(&[positions], inv_freq, Pairs::Layout(layout), amplitude)
    }

    /// The table of a two-dimensional rotation (ChatGLM-6B): the first half of the head is rotated
    /// by the positions `a`, the second by the positions `b`, each half-split within itself.
    ///
    /// | name | meaning |
    /// |---|---|
    /// | `a`, `b` | `[B, T]`, i32 |
    /// | `inv_freq` | E/4 numbers, those of a rotation of E/2 dimensions |
    ///
    /// Du et al. 2021, <https://arxiv.org/abs/2103.10360>, section 2.1 for the positions.
    ///
    /// # Errors
    /// If the positions are not i32 or differ in shape, a number is not finite or memory runs out.
    pub fn two_dimensional(a: &Tensor, b: &Tensor, inv_freq: &[f64]) -> Result<Self> {
        if a.shape() != b.shape() {
            let rule = "both positions of a token are needed";
            return Err(Error::Shape { op: OP, lhs: a.shape(), rhs: b.shape(), rule });
        }
        Self::build(&[a, b], inv_freq, Pairs::TwoHalves, 1.0)
    }

    /// One group of frequencies for each tensor of positions.
    fn build(
        positions: &[&Tensor],
        inv_freq: &[f64],
        pairs: Pairs,
        amplitude: f64,
    ) -> Result<Self> {
        check_finite("inv_freq", inv_freq)?;
        for positions in positions {
            positions.expect_ids(OP)?;
        }
        Ok(Self {
            positions: positions.iter().map(|p| p.detach()).collect(),
            inv_freq: inv_freq.into(),
            amplitude,
            pairs,
            angles: Arc::default(),
        })
    }

    /// Cosines and sines on `device`.
    pub(super) fn angles(&self, device: Device) -> Result<Angles> {
        let mut known = self.angles.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, angles)) = known.iter().find(|(d, _)| *d == device) {
            return Ok(angles.clone());
        }
        let angles = match device {
            Device::Cpu => angles(&self.positions, &self.inv_freq, self.amplitude)?,
            Device::Cuda(_) => {
                cuda::angles(&self.positions, &self.inv_freq, self.amplitude, device)?
            }
        };
        known.push((device, angles.clone()));
        Ok(angles)
    }

    /// Number of tokens N = B·T.
    #[must_use]
    pub fn n_tokens(&self) -> usize {
        self.positions[0].shape().n_elements()
    }

    /// Number R of rotated dimensions of a head.
    #[must_use]
    pub fn rotary_dim(&self) -> usize {
        2 * self.positions.len() * self.inv_freq.len()
    }

    /// Whether heads of this width can be rotated: the halves of a two-dimensional rotation are
    /// halves of the whole head.
    pub(super) fn fits_width(&self, width: usize) -> bool {
        match self.pairs {
            Pairs::Layout(_) => self.rotary_dim() <= width,
            Pairs::TwoHalves => self.rotary_dim() == width,
        }
    }

    pub(super) fn pairs(&self) -> Pairs {
        self.pairs
    }
}

fn angles(positions: &[Tensor], inv_freq: &[f64], amplitude: f64) -> Result<Angles> {
    let positions: Vec<_> = positions.iter().map(Tensor::ids).collect();
    let (n_tokens, width) = (positions[0].len(), positions.len() * inv_freq.len());
    let mut cos = Tensor::uninit([n_tokens, width], DType::F32)?;
    let mut sin = Tensor::uninit([n_tokens, width], DType::F32)?;
    let shared = SharedMut::new(sin.data_mut());
    // A row costs microseconds, so a task needs only a few.
    let rows = (1024 / width.max(1)).max(1);
    threads::run_chunks(cos.data_mut(), rows * width, |index, cos| {
        // SAFETY: tasks own disjoint rows.
        let sin = unsafe { shared.slice(index * rows * width, cos.len()) };
        for i in 0..cos.len() {
            let (token, column) = (index * rows + i / width, i % width);
            let position = positions[column / inv_freq.len()][token];
            let angle = f64::from(position) * inv_freq[column % inv_freq.len()];
            let (s, c) = angle.sin_cos();
            cos[i] = (c * amplitude) as f32;
            sin[i] = (s * amplitude) as f32;
        }
    });
    Ok(Angles { cos, sin })
}

const OP: &str = "rope";

fn check_finite(name: &'static str, values: &[f64]) -> Result<()> {
    match values.iter().find(|v| !v.is_finite()) {
        None => Ok(()),
        Some(bad) => {
            let value = bad.to_string();
            Err(Error::Argument { op: OP, name, value, expected: "a finite number" })
        }
    }
}
