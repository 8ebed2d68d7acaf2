//! Swapping of two dimensions.

use lehr_kernels::CHUNK;

use super::cuda;
use crate::autograd::{Gradients, Op, record1};
use crate::{Result, Shape, Tensor, threads};

impl Tensor {
    /// The same values with dimensions `first` and `second` swapped, copied into row-major order.
    ///
    /// # Errors
    /// If there is no such dimension, the elements are not f32, or memory runs out.
    pub fn transpose(&self, first: usize, second: usize) -> Result<Self> {
        self.expect_float("transpose")?;
        crate::ops::expect_rank_min("transpose", self, first.max(second) + 1)?;
        let y = swapped(self, first, second)?;
        Ok(record1(&[self], y, || Transpose { first, second }))
    }
}

/// Seen as `[outer, A, middle, B, inner]`, the result is `[outer, B, middle, A, inner]`.
fn swapped(x: &Tensor, first: usize, second: usize) -> Result<Tensor> {
    let (low, high) = (first.min(second), first.max(second));
    let mut dims = x.shape().to_vec();
    let (a, b) = (dims[low], dims[high]);
    let middle: usize = if low == high { 1 } else { dims[low + 1..high].iter().product() };
    let inner: usize = dims[high + 1..].iter().product();
    dims.swap(low, high);
    if low == high {
        return Ok(x.with_shape(x.shape()));
    }
    let mut y = x.like(Shape::from(&dims))?;
    if x.is_cuda() {
        let outer: usize = x.shape()[..low].iter().product();
        cuda::swapped(x, [outer, a, middle, b, inner], &mut y)?;
        return Ok(y);
    }
    let x = x.data();
    // One slab is what shares outer and B: [middle, A, inner] of the result.
    let slab = middle * a * inner;
    let group = (CHUNK / slab.max(1)).max(1);
    threads::run_chunks(y.data_mut(), group * slab, |index, y| {
        for (i, y) in y.chunks_exact_mut(slab).enumerate() {
            let (outer, ib) = ((index * group + i) / b, (index * group + i) % b);
            for im in 0..middle {
                for ia in 0..a {
                    let from = (((outer * a + ia) * middle + im) * b + ib) * inner;
                    let to = (im * a + ia) * inner;
                    y[to..to + inner].copy_from_slice(&x[from..from + inner]);
                }
            }
        }
    });
    Ok(y)
}

struct Transpose {
    first: usize,
    second: usize,
}

impl Op for Transpose {
    fn name(&self) -> &'static str {
        "transpose"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        if !grads.wants(0) {
            return Ok(());
        }
        grads.add(0, swapped(&dy, self.first, self.second)?)
    }
}
