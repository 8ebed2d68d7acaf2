//! The same numbers under another shape.

use crate::autograd::{Gradients, Op, record1};
use crate::{Error, Result, Shape, Tensor};

impl Tensor {
    /// The same values, row-major, under another shape of as many elements. Nothing is copied.
    ///
    /// # Errors
    /// If the number of elements differs.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        if shape.n_elements() != self.shape().n_elements() {
            let rule = "a reshape keeps the number of elements";
            return Err(Error::Shape { op: "reshape", lhs: self.shape(), rhs: shape, rule });
        }
        let y = self.with_shape(shape);
        Ok(record1(&[self], y, || Reshape { from: self.shape() }))
    }
}

struct Reshape {
    from: Shape,
}

impl Op for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }

    fn backward(&self, grads: &mut Gradients<'_>) -> Result<()> {
        let dy = grads.only_output();
        grads.add(0, dy.with_shape(self.from))
    }
}
