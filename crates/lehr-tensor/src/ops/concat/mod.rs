//! Tensors joined along one dimension.

#[cfg(test)]
mod reference;
#[cfg(test)]
pub(crate) mod tests;

use lehr_kernels::strided::{RunSize, Runs, copy};

use crate::autograd::{Gradients, Op, record1};
use crate::copy::copy_runs;
use crate::{Error, Result, Shape, Tensor};

impl Tensor {
    /// The parts one after another along dimension `dim`.
    ///
    /// | name | shape |
    /// |---|---|
    /// | `parts` | `[.., Nᵢ, ..]`, equal except in dimension `dim` |
    /// | returns | `[.., Σ Nᵢ, ..]` |
    ///
    /// Saves shapes only. Each part's gradient is its piece of the result's.
    ///
    /// # Errors
    /// If there are no parts, shapes do not fit or memory runs out.
    pub fn concat(parts: &[&Self], dim: usize) -> Result<Self> {
        let shape = check(parts, dim)?;
        let mut y = parts[0].like(shape)?;
        let mut offset = 0;
        for part in parts {
            let size = runs(&part.shape(), dim);
            let to = Runs { offset, stride: runs(&shape, dim).len };
            if y.is_cuda() {
                copy_runs(size, part, Runs::packed(size.len), &mut y, to, false)?;
            } else {
                copy(size, part.data(), Runs::packed(size.len), y.data_mut(), to, false);
            }
            offset += size.len;
        }
        let op = || Concat { parts: parts.iter().map(|p| p.shape()).collect(), dim };
        Ok(record1(parts, y, op))
    }
}

fn check(parts: &[&Tensor], dim: usize) -> Result<Shape> {
    const OP: &str = "concat";
    let Some(first) = parts.first() else {
        let (name, value) = ("parts", "an empty list".to_owned());
        return Err(Error::Argument { op: OP, name, value, expected: "at least one tensor" });
    };
    super::expect_rank_min(OP, first, dim + 1)?;
    let mut dims = first.shape().to_vec();
    dims[dim] = 0;
    for part in parts {
        part.expect_float(OP)?;
        first.expect_beside(OP, part)?;
        let shape = part.shape();
        let fits = shape.len() == dims.len()
            && (0..dims.len()).all(|i| i == dim || shape[i] == first.shape()[i]);
        if !fits {
            let rule = "the parts must agree in all other dimensions";
            return Err(Error::Shape { op: OP, lhs: first.shape(), rhs: shape, rule });
        }
        dims[dim] += shape[dim];
    }
    Ok(Shape::from(&dims))
}

/// Number and length of the pieces that are contiguous when `dim` is cut.
pub(super) fn runs(shape: &Shape, dim: usize) -> RunSize {
    RunSize { n: shape[..dim].iter().product(), len: shape[dim..].iter().product() }
}

struct Concat {
    parts: Vec<Shape>,
    dim: usize,
}

impl Op for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        let stride = runs(&dy.shape(), self.dim).len;
        let mut offset = 0;
        for (i, shape) in self.parts.iter().enumerate() {
            let size = runs(shape, self.dim);
            if dy.is_cuda() {
                if grads.wants(i) {
                    let mut dx = dy.like(*shape)?;
                    let from = Runs { offset, stride };
                    copy_runs(size, &dy, from, &mut dx, Runs::packed(size.len), false)?;
                    grads.add(i, dx)?;
                }
                offset += size.len;
                continue;
            }
            grads.write(i, *shape, |dx, accumulate| {
                let from = Runs { offset, stride };
                copy(size, dy.data(), from, dx, Runs::packed(size.len), accumulate);
                Ok(())
            })?;
            offset += size.len;
        }
        Ok(())
    }
}
