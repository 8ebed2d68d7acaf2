//! Small composable ops, for glue and tests. What runs in every block of a model is a fat op.

mod binary;
pub(crate) mod cuda;
mod matmul;
mod reduce;
#[cfg(test)]
mod reference;
#[cfg(test)]
pub(crate) mod tests;
mod transpose;
mod unary;
mod view;
