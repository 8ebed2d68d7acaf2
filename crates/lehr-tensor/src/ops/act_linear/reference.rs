use crate::ops::activation::{Activation, reference::activation};
use crate::ops::linear::{WeightLayout, reference::linear};
use crate::testing::Array;

/// `f(x) Wᵀ + bias`.
pub(super) fn act_linear(
    f: Activation,
    x: &Array,
    w: &Array,
    layout: WeightLayout,
    bias: Option<&Array>,
) -> Array {
    linear(&activation(f, x), w, layout, bias)
}
