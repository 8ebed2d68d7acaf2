use super::reference;
use crate::ops::activation::Activation::{self, GeluErf, GeluTanh};
use crate::ops::linear::{Affine, WeightLayout};
use crate::testing::{Case, Pair};
use crate::{DType, Device, Tensor, cuda};

/// Rows, width, inner width, outputs: with few rows, and with widths that are multiples of 8 and
/// not.
const SIZES: [[usize; 4]; 5] =
    [[0, 5, 8, 3], [2, 7, 16, 5], [12, 16, 40, 9], [33, 24, 13, 16], [130, 17, 72, 31]];

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for size in SIZES {
        for activation in [GeluTanh, GeluErf] {
            for layout in [WeightLayout::OutIn, WeightLayout::InOut] {
                for bias in [true, false] {
                    cases.push(case(size, activation, layout, bias));
                }
            }
        }
    }
    cases
}

fn case(
    [n, d, f, out]: [usize; 4],
    activation: Activation,
    layout: WeightLayout,
    bias: bool,
) -> Case {
    let mut shapes = vec![vec![n, d], vec![f, d], vec![out, f]];
    if layout == WeightLayout::InOut {
        shapes[1..].iter_mut().for_each(|shape| shape.swap(0, 1));
    }
    if bias {
        shapes.extend([vec![f], vec![out]]);
    }
    let pair = Pair::one(
        move |x| {
            let map = |i: usize| Affine::new(&x[i], layout, x.get(i + 2));
            x[0].feed_forward(map(1), activation, map(2))
        },
        move |x| reference::feed_forward(activation, layout, x),
    );
    let name =
        format!("feed_forward {activation:?} {n} × {d} to {f} to {out}, {layout:?}, bias {bias}");
    // The inner numbers are of order 1, as in a model.
    let scale = (d as f32).powf(-0.5);
    Case::random(&name, &shapes, pair).map_inputs(|x| scale * x)
}

/// The GELU of sums that were not rounded before is not always that of rounded sums: so the product
/// wrote it.
#[test]
fn gpu_products_write_the_gelu_and_take_its_slope() {
    if cuda::device_info(0).unwrap().driver_version > 0 {
        // A library may write it in another way, and then the numbers may be equal.
        return;
    }
    let run = || {
        let case = case([12, 16, 40, 16], GeluTanh, WeightLayout::InOut, true);
        let (outputs, _) = case.run_on(Device::Cuda(0), DType::BF16, None);
        let cotangents = case.cotangents(&outputs);
        case.run_on(Device::Cuda(0), DType::BF16, Some(&cotangents))
    };
    let ((y, grads), (plain_y, plain_grads)) = (run(), cuda::with_plain_products(run));
    let values = |y: &[Tensor]| y.iter().flat_map(Tensor::to_vec).collect::<Vec<_>>();
    assert_ne!(values(&y), values(&plain_y));
    assert_ne!(grads, plain_grads);
}
