use crate::testing::Array;

/// `y[i, :] = table[ids[i], :]`, in the shape of the ids and the row.
pub(crate) fn gather(table: &Array, ids: &[i32], shape: &[usize]) -> Array {
    let d = table.last_dim();
    let mut y = Array::zeros(&[shape, &[d]].concat());
    for (i, id) in ids.iter().enumerate() {
        for k in 0..d {
            y.data[i * d + k] = table.data[*id as usize * d + k];
        }
    }
    y
}
