//! [`orthogonalize`](super::polar::orthogonalize) with products of bf16 operands, for parameters
//! that are computed with in bf16 on the CPU.
//!
//! Symmetric products are computed whole: packing a triangle's operands block by block costs more
//! than the other triangle does.

use lehr_kernels::bf16::{Forms, Panels, Side, pack, product};

use super::polar::{STEPS, Work, combine, mirror};
use crate::Result;

/// Operands of one orthogonalisation.
struct Operands {
    /// X and Xᵀ for their product, of the shorter side.
    gram_left: Panels,
    gram_right: Panels,
    /// X for the last product.
    x: Panels,
    /// A for its square.
    left: Panels,
    right: Panels,
    /// The polynomial.
    polynomial: Panels,
}

impl Operands {
    fn new(rows: usize, cols: usize) -> Result<Self> {
        let (side, long) = (rows.min(cols), rows.max(cols));
        let is_wide = rows <= cols;
        let (x, p) = if is_wide { (Side::Right, Side::Left) } else { (Side::Left, Side::Right) };
        Ok(Self {
            gram_left: Panels::uninit(Side::Left, side, long)?,
            gram_right: Panels::uninit(Side::Right, side, long)?,
            x: Panels::uninit(x, long, side)?,
            left: Panels::uninit(Side::Left, side, side)?,
            right: Panels::uninit(Side::Right, side, side)?,
            polynomial: Panels::uninit(p, side, side)?,
        })
    }

    /// Rounds X `[rows, cols]`.
    fn set_x(&mut self, x: &[f32], rows: usize, cols: usize) {
        let Self { gram_left, gram_right, x: last, .. } = self;
        let forms = if rows <= cols {
            // X Xᵀ and P X.
            Forms {
                left: Some(gram_left),
                right_transposed: Some(gram_right),
                right: Some(last),
                left_transposed: None,
            }
        } else {
            // Xᵀ X and X P.
            Forms {
                left_transposed: Some(gram_left),
                right: Some(gram_right),
                left: Some(last),
                right_transposed: None,
            }
        };
        pack(x, cols, (rows, cols), forms);
    }
}

/// Replaces `work.x [rows, cols]`, whose singular values are at most 1, by a matrix with the same
/// singular vectors and singular values near 1.
pub(super) fn orthogonalize(rows: usize, cols: usize, work: &mut Work<'_>) -> Result<()> {
    let side = rows.min(cols);
    let Work { x, gram, polynomial, .. } = work;
    let mut operands = Operands::new(rows, cols)?;
    for step in STEPS {
        operands.set_x(x, rows, cols);
        product(&operands.gram_left, &operands.gram_right, gram, side, false, None)?;
        let forms = Forms {
            left: Some(&mut operands.left),
            right: Some(&mut operands.right),
            ..Forms::default()
        };
        pack(gram, side, (side, side), forms);
        product(&operands.left, &operands.right, polynomial, side, false, None)?;
        combine(side, step, gram, polynomial);
        // The products of one element and its mirror image add in one order, but exactly equal they
        // are only by this.
        mirror(side, polynomial);
        let mut forms = Forms::default();
        let p = Some(&mut operands.polynomial);
        if rows <= cols {
            forms.left = p;
        } else {
            forms.right = p;
        }
        pack(polynomial, side, (side, side), forms);
        match rows <= cols {
            true => product(&operands.polynomial, &operands.x, x, cols, false, None)?,
            false => product(&operands.x, &operands.polynomial, x, cols, false, None)?,
        }
    }
    Ok(())
}

#[cfg(test)]
pub(super) fn orthogonal_factor(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let side = rows.min(cols);
    let (mut x, mut y) = (x.to_vec(), Vec::new());
    let (mut gram, mut polynomial) = (vec![0.0; side * side], vec![0.0; side * side]);
    let mut work = Work { x: &mut x, y: &mut y, gram: &mut gram, polynomial: &mut polynomial };
    orthogonalize(rows, cols, &mut work).unwrap();
    x
}
