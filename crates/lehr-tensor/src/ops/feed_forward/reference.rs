use crate::ops::activation::{Activation, reference::activation};
use crate::ops::linear::{WeightLayout, reference::linear};
use crate::testing::Array;

/// `f(x W₁ᵀ + bias₁) W₂ᵀ + bias₂` of x, W₁, W₂ and, if there are any, the biases.
pub(super) fn feed_forward(f: Activation, layout: WeightLayout, inputs: &[Array]) -> Array {
    let (x, up, down) = (&inputs[0], &inputs[1], &inputs[2]);
    let h = activation(f, &linear(x, up, layout, inputs.get(3)));
    linear(&h, down, layout, inputs.get(4))
}
