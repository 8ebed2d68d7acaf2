//! The three products of a linear map in bf16 on the CPU. Their operands are rounded and laid out
//! once each:
//!
//! | operand | side | used by |
//! |---|---|---|
//! | x | left | y |
//! | x, or xᵀ for a weight `[in, out]` | right, left | dW; kept for backward in the place of x |
//! | W and its transpose | right | y and dx; kept with the parameter |
//! | dy | left | dx |
//! | dyᵀ, or dy for a weight `[in, out]` | left, right | dW |

use std::sync::Arc;

use lehr_kernels::bf16::{Forms, Panels, Side, pack, product};

use super::LinearSize;
use super::WeightLayout::{self, InOut, OutIn};
use crate::panels;
pub(crate) use crate::panels::Input;
use crate::quant::QMatrix;
use crate::{Result, Tensor};

/// A matrix whose products are in bf16: a parameter, or a matrix in its storage format.
#[derive(Clone, Copy)]
pub(crate) enum Weight<'a> {
    Param(&'a Tensor),
    Stored(&'a QMatrix),
}

impl Weight<'_> {
    /// The matrix, or its transpose, as the right operand of a product.
    pub(crate) fn right_operand(self, is_transposed: bool) -> Result<Arc<Panels>> {
        match self {
            Self::Param(weight) => weight.right_operand(is_transposed),
            Self::Stored(weight) => weight.right_operand(is_transposed),
        }
    }
}

impl Input {
    /// Rounds `x` `[rows, in]`. With `is_kept`, also for the gradient of the weight.
    pub(crate) fn new(
        x: &Tensor,
        size: LinearSize,
        layout: WeightLayout,
        is_kept: bool,
    ) -> Result<Self> {
        let buffer = x.cpu_buffer();
        let is_transposed = layout == InOut;
        let same = panels::last_input(buffer, is_transposed).filter(|input| {
            (input.left.width(), input.left.steps()) == (size.rows, size.n_in)
                && (input.for_weight.is_some() || !is_kept)
        });
        if let Some(input) = same {
            return Ok(input);
        }
        let input = Self::pack(x.data(), size, layout, is_kept)?;
        panels::remember_input(buffer, is_transposed, input.clone());
        Ok(input)
    }

    /// [`Input::new`] from values that no other map reads.
    pub(crate) fn pack(
        x: &[f32],
        LinearSize { rows, n_in, .. }: LinearSize,
        layout: WeightLayout,
        is_kept: bool,
    ) -> Result<Self> {
        let mut left = Panels::uninit(Side::Left, rows, n_in)?;
        let mut kept = is_kept.then(|| for_weight(layout, rows, n_in)).transpose()?;
        let mut forms = Forms { left: Some(&mut left), ..Forms::default() };
        match layout {
            OutIn => forms.right = kept.as_mut(),
            InOut => forms.left_transposed = kept.as_mut(),
        }
        pack(x, n_in, (rows, n_in), forms);
        Ok(Self { left: Arc::new(left), for_weight: kept.map(Arc::new) })
    }
}

/// Room for the input of the product that gives dW.
fn for_weight(layout: WeightLayout, rows: usize, n_in: usize) -> Result<Panels> {
    let side = match layout {
        OutIn => Side::Right,
        InOut => Side::Left,
    };
    Panels::uninit(side, n_in, rows)
}

/// The values of `x` `[rows, in]` as an operand of the product that gives dW.
pub(crate) fn pack_for_weight(
    x: &[f32],
    LinearSize { rows, n_in, .. }: LinearSize,
    layout: WeightLayout,
) -> Result<Panels> {
    let mut panels = for_weight(layout, rows, n_in)?;
    let mut forms = Forms::default();
    match layout {
        OutIn => forms.right = Some(&mut panels),
        InOut => forms.left_transposed = Some(&mut panels),
    }
    pack(x, n_in, (rows, n_in), forms);
    Ok(panels)
}

/// `y = x Wᵀ + bias`.
pub(crate) fn forward(
    x: &Input,
    weight: Weight<'_>,
    layout: WeightLayout,
    bias: Option<&[f32]>,
    y: &mut [f32],
) -> Result<()> {
    let weight = weight.right_operand(layout == OutIn)?;
    product(&x.left, &weight, y, weight.width(), false, bias)
}

/// The gradient of the output `[rows, out]`, rounded.
pub(crate) struct OutputGrad {
    left: Option<Panels>,
    for_weight: Option<Panels>,
}

impl OutputGrad {
    /// Rounds `dy` for the gradients that are wanted.
    pub(crate) fn new(
        dy: &[f32],
        LinearSize { rows, n_out, .. }: LinearSize,
        layout: WeightLayout,
        (wants_x, wants_weight): (bool, bool),
    ) -> Result<Self> {
        let mut left = wants_x.then(|| Panels::uninit(Side::Left, rows, n_out)).transpose()?;
        let side = match layout {
            OutIn => Side::Left,
            InOut => Side::Right,
        };
        let mut kept = wants_weight.then(|| Panels::uninit(side, n_out, rows)).transpose()?;
        let mut forms = Forms { left: left.as_mut(), ..Forms::default() };
        match layout {
            OutIn => forms.left_transposed = kept.as_mut(),
            InOut => forms.right = kept.as_mut(),
        }
        pack(dy, n_out, (rows, n_out), forms);
        Ok(Self { left, for_weight: kept })
    }

    /// `dx (+)= dy W`.
    ///
    /// # Panics
    /// If it was rounded without this gradient in mind.
    pub(crate) fn input(
        &self,
        weight: Weight<'_>,
        layout: WeightLayout,
        dx: &mut [f32],
        accumulate: bool,
    ) -> Result<()> {
        let weight = weight.right_operand(layout == InOut)?;
        let dy = self.left.as_ref().expect("dy was rounded for dx");
        product(dy, &weight, dx, weight.width(), accumulate, None)
    }

    /// `dW (+)= dyᵀ x`, or its transpose.
    ///
    /// # Panics
    /// As [`OutputGrad::input`].
    pub(crate) fn weight(
        &self,
        size: LinearSize,
        x: &Panels,
        layout: WeightLayout,
        dw: &mut [f32],
        accumulate: bool,
    ) -> Result<()> {
        let dy = self.for_weight.as_ref().expect("dy was rounded for dW");
        match layout {
            OutIn => product(dy, x, dw, size.n_in, accumulate, None),
            InOut => product(x, dy, dw, size.n_out, accumulate, None),
        }
    }
}
