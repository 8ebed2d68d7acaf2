use std::ops::Range;

use crate::testing::Array;

/// Element `[o, j, i]` of the result is `[o, range.start + j, i]` of `x`.
pub(super) fn slice(x: &Array, dim: usize, range: &Range<usize>) -> Array {
    let mut shape = x.shape.clone();
    shape[dim] = range.len();
    let outer: usize = shape[..dim].iter().product();
    let inner: usize = shape[dim + 1..].iter().product();
    let mut data = Vec::new();
    for o in 0..outer {
        for j in range.clone() {
            for i in 0..inner {
                data.push(x.data[(o * x.shape[dim] + j) * inner + i]);
            }
        }
    }
    Array { shape, data }
}
