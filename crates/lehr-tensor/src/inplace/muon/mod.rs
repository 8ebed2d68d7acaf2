//! The Muon update: momentum whose direction is made orthogonal, matrix by matrix.

mod cpu;
pub(crate) mod cuda;
mod part;
mod polar;
mod rounded;
#[cfg(test)]
mod tests;

use self::part::Part;
use super::Clip;
use crate::{Param, Result, Tensor};

/// The numbers of one update.
#[derive(Clone, Copy, Debug)]
pub struct Muon {
    /// Learning rate. A map with more outputs than inputs has `√(outputs / inputs)` times as much.
    pub lr: f32,
    /// Decay μ of the momentum.
    pub momentum: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Decoupled weight decay λ.
    pub weight_decay: f32,
    /// Whether only weights decay whose update also moves them towards 0.
    pub cautious: bool,
    /// The gradient is multiplied by this first: it undoes loss scaling.
    pub grad_scale: f32,
    /// Whether the matrices move. If not, only the momentum takes the gradient in.
    pub moves: bool,
}

/// A matrix with its state.
pub struct MuonItem<'a> {
    /// The matrix. Without a gradient it does not change.
    pub param: &'a Param,
    /// The momentum, of the matrix's shape.
    pub momentum: &'a mut Tensor,
    /// The second moment, [`muon_moments`] numbers.
    pub second: &'a mut Tensor,
}

/// Returns the size of the second moment of a matrix: for each map in it, one number per output or
/// per input, whichever there are more of.
#[must_use]
pub fn muon_moments(param: &Param) -> usize {
    Part::all(param).iter().map(Part::n_moments).sum()
}

/// Updates matrices in place, on any device. Maps that share a matrix ([`Param::form`]) are updated
/// each on its own. For a map with m outputs and n inputs, whose gradient is G:
///
/// ```text
/// M ← μ M + (1 − μ) G                     momentum
/// U = μ M + (1 − μ) G                     one step ahead: Nesterov
/// U ← U with the mean norm for every row  rows are outputs
/// X = U / (1.01 ‖U‖)
/// X ← a X + (b A + c A²) X, A = X Xᵀ      five times
/// X ← X √min(m, n) / ‖X‖
/// v ← β₂ v + (1 − β₂) mean X²             of each output if m ≥ n, else of each input
/// X ← X / √v, with the norm it had
/// W ← W − η X − η λ W [X W ≥ 0]           η = lr √max(1, m / n); λ for all W if not cautious
/// ```
///
/// Muon: Jordan 2024, <https://kellerjordan.github.io/posts/muon/>. Coefficients: Polar Express,
/// Amsel et al. 2025, <https://arxiv.org/abs/2505.16932>. Second moment: NorMuon, Li et al. 2025,
/// <https://arxiv.org/abs/2510.05491>. Rows of equal norm: <https://arxiv.org/abs/2603.28254>. The
/// norm of the result: <https://arxiv.org/abs/2602.21545>. Cautious decay: Chen et al. 2025,
/// <https://arxiv.org/abs/2510.12402>.
///
/// On a GPU the products have bf16 operands if the parameters are computed with in 16 bits.
/// `clip` decides on the device whether and how much to clip.
///
/// # Errors
/// If a parameter is still in use by a graph, memory runs out or a device fails.
pub fn muon_params(
    items: &mut [MuonItem<'_>],
    mut rule: Muon,
    clip: Option<Clip<'_>>,
) -> Result<()> {
    let is_cuda = items.first().is_some_and(|item| item.momentum.is_cuda());
    match clip {
        Some(clip) if is_cuda && clip.squared_norm.on_cuda().is_some() => {
            return cuda::update(items, rule, Some(clip));
        }
        Some(clip) => match clip.scale(clip.squared_norm.get()?, rule.grad_scale) {
            Some(scale) => rule.grad_scale = scale,
            None => return Ok(()),
        },
        None => (),
    }
    if is_cuda { cuda::update(items, rule, None) } else { cpu::update(items, rule) }
}
