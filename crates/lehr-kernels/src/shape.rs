//! The dimensions of a tensor.

use std::{fmt, ops::Deref};

const RANK_MAX: usize = 6;

/// Up to six dimensions, row-major, outermost first. It is `Copy` and allocates nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [usize; RANK_MAX],
    rank: usize,
}

impl Shape {
    /// Largest number of dimensions.
    pub const RANK_MAX: usize = RANK_MAX;

    /// Returns the number of elements: the product of the dimensions, 1 for a scalar. If the
    /// product overflows, it is the largest number, which no memory can hold.
    #[must_use]
    pub fn n_elements(&self) -> usize {
        self.iter().fold(1, |n: usize, d| n.saturating_mul(*d))
    }

    /// Returns the innermost dimension, 1 for a scalar.
    #[must_use]
    pub fn last_dim(&self) -> usize {
        self.last().copied().unwrap_or(1)
    }

    /// Returns the number of rows along the innermost dimension: the product of the others.
    #[must_use]
    pub fn n_rows(&self) -> usize {
        self[..self.rank.saturating_sub(1)].iter().fold(1, |n: usize, d| n.saturating_mul(*d))
    }

    /// Returns the shape with another innermost dimension.
    #[must_use]
    pub fn with_last_dim(mut self, dim: usize) -> Self {
        if self.rank == 0 {
            return Self::from([dim]);
        }
        self.dims[self.rank - 1] = dim;
        self
    }
}

impl Deref for Shape {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.dims[..self.rank]
    }
}

impl From<&[usize]> for Shape {
    fn from(dims: &[usize]) -> Self {
        assert!(dims.len() <= RANK_MAX, "a shape has at most {RANK_MAX} dimensions: {dims:?}");
        let mut shape = Self { dims: [1; RANK_MAX], rank: dims.len() };
        shape.dims[..dims.len()].copy_from_slice(dims);
        shape
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Self {
        Self::from(dims.as_slice())
    }
}

impl From<&Vec<usize>> for Shape {
    fn from(dims: &Vec<usize>) -> Self {
        Self::from(dims.as_slice())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &**self)
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::Shape;

    #[test]
    fn a_product_that_overflows_is_more_than_any_memory() {
        assert_eq!(Shape::from([usize::MAX, 2]).n_elements(), usize::MAX);
        assert_eq!(Shape::from([1 << 32, 1 << 32, 7]).n_elements(), usize::MAX);
        assert_eq!(Shape::from([usize::MAX, 2, 0]).n_elements(), 0);
    }
}
