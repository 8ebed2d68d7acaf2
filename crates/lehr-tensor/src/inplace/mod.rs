//! Functions that write into a buffer and have no gradient. They refuse tensors that want one.

use lehr_kernels::strided::{RunSize, Runs};

use crate::{Error, Result, Tensor};

mod adamw;
pub(crate) mod cuda;
mod lerp;
pub(crate) mod muon;
mod norm;
pub(crate) mod pages;
pub mod sample;

pub use adamw::{AdamW, AdamWItem, adamw, adamw_params};
pub use lerp::lerp;
pub use muon::{Muon, MuonItem, muon_moments, muon_params};
pub use norm::{Clip, SquaredGradNorm, scale, sum_of_squares};
pub(crate) use pages::gather_pages;
pub use pages::{advance_texts, write_pages};

/// Writes `new` `[B, T, ..]` over the positions from `at` on of `all` `[B, S, ..]`: a cache of keys
/// or values.
///
/// # Errors
/// If the extents do not fit, the two differ in element type or device, or one wants a gradient.
///
/// # Panics
/// If `all` is shared and on the CPU.
pub fn write_positions(all: &mut Tensor, new: &Tensor, at: usize) -> Result<()> {
    const OP: &str = "write_positions";
    refuse_grad(OP, "new", new)?;
    refuse_grad(OP, "all", all)?;
    all.expect_beside(OP, new)?;
    let (to, from) = (all.shape(), new.shape());
    let fits = to.len() == from.len()
        && to.len() >= 2
        && to[0] == from[0]
        && to[2..] == from[2..]
        && at + from[1] <= to[1];
    if !fits {
        let rule = "the new positions must fit behind the old ones";
        return Err(Error::Shape { op: OP, lhs: to, rhs: from, rule });
    }
    let width: usize = to[2..].iter().product();
    let (len, stride, offset) = (from[1] * width, to[1] * width, at * width);
    if all.is_cuda() {
        let size = RunSize { n: from[0], len };
        return cuda::write_runs(all, new, size, Runs { offset, stride });
    }
    let all = all.data_mut();
    for (row, new) in new.data().chunks_exact(len.max(1)).enumerate() {
        all[row * stride + offset..][..len].copy_from_slice(new);
    }
    Ok(())
}

/// The index of the largest value of each row of `x [.., D]`, `[rows]`: the first of equals; NaN
/// never wins.
///
/// # Errors
/// If memory runs out or a device fails.
pub fn argmax(x: &Tensor) -> Result<Tensor> {
    x.expect_float("argmax")?;
    if x.is_cuda() {
        return cuda::argmax(x);
    }
    let best = |row: &[f32]| {
        let better =
            |best: usize, i: usize| if row[i] > row[best] || row[best].is_nan() { i } else { best };
        (1..row.len()).fold(0, better) as i32
    };
    let ids: Vec<i32> = x.data().chunks(x.shape().last_dim().max(1)).map(best).collect();
    Tensor::from_ids(&ids, [ids.len()])
}

/// An error if a tensor wants a gradient, which would end here without a word.
pub(crate) fn refuse_grad(op: &'static str, name: &'static str, tensor: &Tensor) -> Result<()> {
    match tensor.wants_grad() {
        true => Err(Error::WantsGrad { op, name }),
        false => Ok(()),
    }
}

/// Overwrites the integers of a tensor on a GPU, for all who share it: the inputs of recorded work.
///
/// # Errors
/// If the tensor is not an integer tensor of that size on a GPU, or the device fails.
pub fn overwrite_ids(tensor: &Tensor, values: &[i32]) -> Result<()> {
    tensor.expect_ids("overwrite_ids")?;
    if tensor.shape().n_elements() != values.len() {
        let expected = format!("{} numbers", values.len());
        return Err(Error::Rank { op: "overwrite_ids", found: tensor.shape(), expected });
    }
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_ne_bytes()).collect();
    tensor.cuda()?.upload(tensor.device_ptr(), &bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::no_grad;
    use crate::pages::Pages;

    #[test]
    fn what_is_written_in_place_must_not_want_a_gradient() {
        let mut all = Tensor::zeros([1, 4, 1, 2]).unwrap();
        let new = Tensor::full([1, 1, 1, 2], 3.0).unwrap();
        let leaf = new.trainable();
        let refused = |result: Result<()>, name: &str| {
            let error = result.unwrap_err();
            let Error::WantsGrad { name: found, .. } = &error else { panic!("{error}") };
            assert_eq!(*found, name);
            assert!(error.hint().unwrap().contains("no_grad"));
        };
        refused(write_positions(&mut all, &leaf, 0), "new");
        refused(write_positions(&mut all, &leaf.scale(2.0).unwrap(), 0), "new");
        refused(write_positions(&mut all.trainable(), &new, 0), "all");
        let pages = Pages::new(
            Tensor::from_ids(&[0], [1, 1]).unwrap(),
            Tensor::from_ids(&[1], [1]).unwrap(),
        )
        .unwrap();
        let mut other = all.duplicate().unwrap();
        refused(write_pages([&mut all, &mut other], [&new, &leaf], &pages), "new");
        assert_eq!(all.to_vec(), [0.0; 8]);
        // What is computed without a graph wants nothing.
        let product = no_grad(|| leaf.scale(2.0)).unwrap();
        write_positions(&mut all, &product, 1).unwrap();
        assert_eq!(all.to_vec(), [0.0, 0.0, 6.0, 6.0, 0.0, 0.0, 0.0, 0.0]);
    }
}
