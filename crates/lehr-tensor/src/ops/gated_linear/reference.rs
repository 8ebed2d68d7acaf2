use crate::ops::activation::Activation;
use crate::ops::gated::reference::gated;
use crate::ops::linear::{WeightLayout, reference::linear};
use crate::testing::Array;

/// `(f(gate) · up) Wᵀ + bias`.
pub(super) fn gated_linear(
    f: Activation,
    gate: &Array,
    up: &Array,
    w: &Array,
    layout: WeightLayout,
    bias: Option<&Array>,
) -> Array {
    linear(&gated(f, gate, up), w, layout, bias)
}
