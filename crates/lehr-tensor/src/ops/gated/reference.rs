use crate::ops::activation::{Activation, reference::value};
use crate::testing::Array;

/// `f(gate) · up`, element by element.
pub(crate) fn gated(activation: Activation, gate: &Array, up: &Array) -> Array {
    let product = |(g, u): (&f64, &f64)| value(activation, *g) * u;
    Array { shape: gate.shape.clone(), data: gate.data.iter().zip(&up.data).map(product).collect() }
}
