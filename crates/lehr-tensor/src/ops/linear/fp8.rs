//! Matrices in 8 bits for the products of wide linear maps.
//!
//! Each matrix has one scale: `x ≈ scale · code` with `scale = amax / largest`, where `amax` is the
//! largest magnitude in the matrix and `largest` that of the format. Weights and activations are
//! e4m3 (`largest` 448), gradients e5m2 (57,344), whose range is wider (Micikevicius et al. 2022,
//! <https://arxiv.org/abs/2209.05433>).
//!
//! This is *current scaling*: `amax` belongs to the same numbers that are encoded. *Delayed
//! scaling* takes it from earlier steps and saves a pass over the matrix. But then a sudden outlier
//! is clipped, and the history of maxima is state that every checkpoint must hold. The pass reads
//! `n · w` numbers, which is little compared with the `n · w · n_out` multiply-adds of a product.
//!
//! Tensor cores multiply 8-bit matrices only if the inner dimension is contiguous in both. The
//! three products `y = x Wᵀ`, `dx = dy W` and `dW = dyᵀ x` have different inner dimensions, so each
//! of x, W and dy is needed both as it is and transposed.

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::LinearSize;
use super::WeightLayout::{self, OutIn};
use crate::cuda::blas::{Element, Operand};
use crate::cuda::{Cuda, Extent, FP8_CAPABILITY, FP8_MULTIPLE, Source, args, int, source};
use crate::{DType, Result, Tensor};

pub(crate) static KERNELS: Source = source!("linear_fp8", "fp8.cu");

const OP: &str = "linear";

/// Whether the products of a linear map of this size can be in fp8.
pub(super) fn fits(
    cuda: &Cuda,
    dtype: DType,
    LinearSize { rows: n, n_out, n_in }: LinearSize,
) -> bool {
    let is_whole = |n: usize| n > 0 && n.is_multiple_of(FP8_MULTIPLE);
    dtype == DType::BF16
        && cuda.info().capability >= FP8_CAPABILITY
        && [n, n_out, n_in].into_iter().all(is_whole)
}

/// One of the three products of a map.
#[derive(Clone, Copy)]
pub(super) enum Pass {
    Forward,
    Input,
    Weight,
}

thread_local! {
    /// Products for which cuBLASLt has no algorithm. They are not quantised a second time.
    static REFUSED: RefCell<BTreeSet<(u8, LinearSize, bool)>> =
        const { RefCell::new(BTreeSet::new()) };
}

/// Number of kinds of products of this thread that ran in bf16 instead of fp8, because cuBLASLt has
/// no algorithm for them.
#[must_use]
pub fn n_refused() -> usize {
    REFUSED.with_borrow(BTreeSet::len)
}

/// Forgets all refused products.
#[cfg(test)]
pub(crate) fn forget_refused() {
    REFUSED.take();
}

/// Runs a product in fp8 unless it was refused before. Returns whether it ran.
pub(super) fn run_unless_refused(
    (pass, size, accumulate): (Pass, LinearSize, bool),
    run: impl FnOnce() -> Result<bool>,
) -> Result<bool> {
    let key = (pass as u8, size, accumulate);
    if REFUSED.with_borrow(|refused| refused.contains(&key)) {
        return Ok(false);
    }
    let has_run = run()?;
    if !has_run {
        REFUSED.with_borrow_mut(|refused| refused.insert(key));
    }
    Ok(has_run)
}

/// The copies of a matrix that its products read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Copies {
    /// The matrix.
    Rows,
    /// Its transpose.
    Columns,
    Both,
}

/// A matrix `[n, w]` in 8 bits.
pub(super) struct Fp8 {
    element: Element,
    size: (usize, usize),
    /// Codes of the matrix, in words, row by row; `None` if not needed.
    rows: Option<Tensor>,
    /// The same for its transpose.
    columns: Option<Tensor>,
    /// f32 `[2]`: `amax` and the scale.
    scale: Tensor,
}

impl Fp8 {
    /// Encodes the matrix `x`, whose extents are multiples of 16: one pass for `amax`, one for all
    /// copies.
    pub(super) fn new(
        x: &Tensor,
        (n, w): (usize, usize),
        element: Element,
        copies: Copies,
    ) -> Result<Self> {
        let (cuda, total) = (x.cuda()?, n * w);
        let room = || Tensor::uninit_on(x.device(), [total / 4], DType::I32);
        let rows = if copies == Copies::Columns { None } else { Some(room()?) };
        let columns = if copies == Copies::Rows { None } else { Some(room()?) };
        let mut scale = x.like_f32([2])?;
        scale.fill_zero()?;
        let largest = args![x, &scale, total as i64];
        cuda.launch(&KERNELS, x.dtype(), "fp8_amax", Extent::elementwise(cuda, total), largest)?;
        let (kind, factor) = (i32::from(element == Element::E5M2), scale.device_ptr() + 4);
        match &columns {
            None => {
                let args = args![x, &scale, factor, rows.as_ref(), total as i64, kind];
                cuda.launch(
                    &KERNELS,
                    x.dtype(),
                    "fp8_cast",
                    Extent::elementwise(cuda, total),
                    args,
                )?;
            }
            Some(columns) => {
                let (grid_x, grid_y) = (int(OP, w.div_ceil(64))?, int(OP, n.div_ceil(64))?);
                let extent = Extent {
                    grid: [grid_x as u32, grid_y as u32, 1],
                    block: [256, 1, 1],
                    shared_bytes: 0,
                };
                let args = args![
                    x,
                    &scale,
                    factor,
                    rows.as_ref(),
                    columns,
                    int(OP, n)?,
                    int(OP, w)?,
                    kind
                ];
                cuda.launch(&KERNELS, x.dtype(), "fp8_cast_transpose", extent, args)?;
            }
        }
        Ok(Self { element, size: (n, w), rows, columns, scale })
    }

    /// Returns `[n, w]`, stored row by row.
    pub(super) fn rows(&self) -> Operand {
        self.operand(self.rows.as_ref(), self.size.1)
    }

    /// Returns the transpose `[w, n]`, stored row by row.
    pub(super) fn columns(&self) -> Operand {
        self.operand(self.columns.as_ref(), self.size.0)
    }

    /// Encodes a weight as the second operand of a product that needs the layout `wanted`.
    pub(super) fn of_weight(
        weight: &Tensor,
        layout: WeightLayout,
        (n_out, n_in): (usize, usize),
        wanted: WeightLayout,
    ) -> Result<(Self, Operand)> {
        let (size, element) =
            (if layout == OutIn { (n_out, n_in) } else { (n_in, n_out) }, Element::E4M3);
        if layout == wanted {
            let w = Self::new(weight, size, element, Copies::Rows)?;
            let operand = w.rows().by_columns();
            return Ok((w, operand));
        }
        let w = Self::new(weight, size, element, Copies::Columns)?;
        let operand = w.columns().by_columns();
        Ok((w, operand))
    }

    /// Returns the codes of the matrix, those of its transpose, and `amax` with the scale.
    #[cfg(test)]
    pub(super) fn parts(&self) -> (Option<&Tensor>, Option<&Tensor>, &Tensor) {
        (self.rows.as_ref(), self.columns.as_ref(), &self.scale)
    }

    fn operand(&self, codes: Option<&Tensor>, width: usize) -> Operand {
        let ptr = codes.map_or(0, Tensor::device_ptr);
        Operand { scale: self.scale.device_ptr() + 4, ..Operand::rows(ptr, self.element, width) }
    }
}
