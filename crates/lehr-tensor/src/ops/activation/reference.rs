use super::Activation;
use crate::testing::Array;

/// `f(x)` for one number.
pub(crate) fn value(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + u.tanh())
        }
        Activation::GeluErf => 0.5 * x * libm::erfc(-x / 2.0f64.sqrt()),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Relu => x.max(0.0),
        Activation::Relu2 => x.max(0.0).powi(2),
    }
}

/// `f(x)` for each element.
pub(crate) fn activation(activation: Activation, x: &Array) -> Array {
    Array { shape: x.shape.clone(), data: x.data.iter().map(|x| value(activation, *x)).collect() }
}
