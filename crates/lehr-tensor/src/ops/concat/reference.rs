use crate::testing::Array;

/// Element `[o, j, i]` of the result is that of the part that `j` falls in.
pub(super) fn concat(parts: &[Array], dim: usize) -> Array {
    let mut shape = parts[0].shape.clone();
    shape[dim] = parts.iter().map(|p| p.shape[dim]).sum();
    let outer: usize = shape[..dim].iter().product();
    let inner: usize = shape[dim + 1..].iter().product();
    let mut data = Vec::new();
    for o in 0..outer {
        for part in parts {
            for j in 0..part.shape[dim] {
                for i in 0..inner {
                    data.push(part.data[(o * part.shape[dim] + j) * inner + i]);
                }
            }
        }
    }
    Array { shape, data }
}
