//! Every operation, one folder each; `README.md` beside this file has the convention.
//!
//! The list below declares the modules and yields the test cases: an op without cases does not
//! compile as a test, and `completeness` fails for an op whose backward no case reaches.

use crate::{Error, Result, Tensor};

pub mod act_linear;
pub mod activation;
pub mod add_gated;
pub mod add_norm;
pub mod attention;
pub mod cast;
pub mod concat;
pub mod dropout;
pub mod embedding;
pub mod feed_forward;
pub mod gated;
pub mod gated_linear;
pub mod gather_rows;
pub mod layer_norm;
pub mod linear;
pub mod linear_cross_entropy;
pub mod linear_q;
pub mod previous_rows;
pub mod rms_norm;
pub mod rope;
pub mod slice;
pub mod softcap;
pub mod softmax;
pub mod thin;
pub mod weighted_sum;

/// Lists the ops for the tests of all ops. The modules are declared above rather than by this
/// macro, because `cargo fmt` does not see modules that a macro declares; `tests.rs` fails if a
/// folder of this directory is missing here.
macro_rules! ops {
    ($($name:ident),* $(,)?) => {
        /// The cases of all ops, in the order of the list.
        #[cfg(test)]
        pub(crate) fn all_cases() -> Vec<crate::testing::Case> {
            let mut cases = Vec::new();
            $(cases.extend($name::tests::cases());)*
            cases
        }

        /// The names in the list.
        #[cfg(test)]
        pub(crate) const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

ops!(
    act_linear,
    activation,
    add_gated,
    add_norm,
    attention,
    cast,
    concat,
    dropout,
    embedding,
    feed_forward,
    gated,
    gated_linear,
    gather_rows,
    layer_norm,
    linear,
    linear_cross_entropy,
    linear_q,
    previous_rows,
    rms_norm,
    rope,
    slice,
    softcap,
    softmax,
    thin,
    weighted_sum,
);

mod rows_cuda;

/// Returns a tensor for the gradient that the two terms of a residual addition share, if one of
/// them (inputs 0 and 1) wants it: the gradient of the sum if it is unshared, else a new tensor.
fn total_room(
    x: &Tensor,
    d_sum: Option<&Tensor>,
    grads: &crate::Gradients<'_>,
) -> Result<Option<Tensor>> {
    if !grads.wants(0) && !grads.wants(1) {
        return Ok(None);
    }
    match d_sum {
        Some(d_sum) if d_sum.is_unique() => Ok(Some(d_sum.clone())),
        _ => x.like(x.shape()).map(Some),
    }
}

/// Returns an error unless both shapes are equal.
fn expect_same(op: &'static str, lhs: &Tensor, rhs: &Tensor) -> Result<()> {
    lhs.expect_float(op)?;
    lhs.expect_beside(op, rhs)?;
    if lhs.shape() == rhs.shape() {
        return Ok(());
    }
    Err(Error::Shape { op, lhs: lhs.shape(), rhs: rhs.shape(), rule: "shapes must be equal" })
}

/// Returns an error unless `vector` is `[D]` for rows of width D.
fn expect_vector(op: &'static str, x: &Tensor, vector: &Tensor) -> Result<()> {
    vector.expect_dtype(op, crate::DType::F32)?;
    vector.expect_on(op, x.device())?;
    if *vector.shape() == [x.shape().last_dim()] {
        return Ok(());
    }
    let rule = "the vector must have one number per column";
    Err(Error::Shape { op, lhs: x.shape(), rhs: vector.shape(), rule })
}

/// Returns an error unless `x` has at least `rank` dimensions.
fn expect_rank_min(op: &'static str, x: &Tensor, rank: usize) -> Result<()> {
    if x.shape().len() >= rank {
        return Ok(());
    }
    Err(Error::Rank { op, found: x.shape(), expected: format!("at least {rank} dimensions") })
}

/// Rows per task for row-wise kernels of width `d`: about 16 Ki numbers. It depends on the shape
/// alone, because partial sums over rows are gathered per task.
fn rows_per_task(d: usize) -> usize {
    ((1 << 14) / d.max(1)).clamp(1, 1 << 14)
}

#[cfg(test)]
mod tests;
