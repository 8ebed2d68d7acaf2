//! Codes of 8 bits against their definition, and the products of a map in fp8 against f64.

use super::WeightLayout::{InOut, OutIn};
use super::fp8::{Copies, Fp8, KERNELS};
use super::{Affine, WeightLayout};
use crate::cuda::blas::Element::{self, E4M3, E5M2};
use crate::cuda::{self, Extent, args};
use crate::ops::activation::Activation;
use crate::testing::relative_error;
use crate::{DType, Device, Philox, Tensor, no_grad};

const GPU: Device = Device::Cuda(0);
const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// The number of a code; `None` for what is none.
fn value(code: u8, element: Element) -> Option<f64> {
    let (fraction_bits, bias) = if element == E4M3 { (3, 7) } else { (2, 15) };
    let (exponent, fraction) =
        (i32::from(code & 127) >> fraction_bits, code & ((1 << fraction_bits) - 1));
    let is_number = if element == E4M3 { code & 127 != 127 } else { exponent != 31 };
    let fraction = f64::from(fraction) / f64::from(1 << fraction_bits);
    let size = match exponent {
        0 => fraction * 2f64.powi(1 - bias),
        _ => (1.0 + fraction) * 2f64.powi(exponent - bias),
    };
    is_number.then_some(if code < 128 { size } else { -size })
}

fn largest(element: Element) -> f64 {
    if element == E4M3 { 448.0 } else { 57_344.0 }
}

/// The code nearest to `x`; of two, the even one; with the sign of `x`.
fn nearest(x: f64, element: Element) -> u8 {
    let size = |code: &u8| value(*code, element).map(|value| (value - x.abs()).abs());
    let codes = (0..128u8).filter(|code| size(code).is_some());
    let key = |code: &u8| (size(code).unwrap(), code & 1);
    let best = codes.min_by(|a, b| key(a).partial_cmp(&key(b)).unwrap()).unwrap();
    if x.is_sign_negative() { best | 128 } else { best }
}

fn codes(words: &Tensor) -> Vec<u8> {
    words.to_host().unwrap().ids().iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The codes that the kernel gives for `x`, where `amax` is the largest magnitude.
fn cast(x: &[f32], amax: f64, element: Element) -> Vec<u8> {
    let mut x = x.to_vec();
    let n = x.len();
    x.resize(n.next_multiple_of(16), 0.0);
    let there = |values: &[f32]| {
        Tensor::from_slice(values, [values.len()]).unwrap().to_device(GPU).unwrap()
    };
    let (x, amax, scale) = (there(&x), there(&[amax as f32]), there(&[0.0]));
    let (total, kind) = (x.shape().n_elements(), i32::from(element == E5M2));
    let words = Tensor::uninit_on(GPU, [total / 4], DType::I32).unwrap();
    let args = args![&x, &amax, &scale, &words, total as i64, kind];
    let cuda = x.cuda().unwrap();
    cuda.launch(&KERNELS, DType::F32, "fp8_cast", Extent::elementwise(cuda, total), args).unwrap();
    codes(&words)[..n].to_vec()
}

#[test]
fn gpu_gives_every_code_back() {
    for element in [E4M3, E5M2] {
        let numbers: Vec<_> =
            (0..=255).filter_map(|code| Some((code, value(code, element)?))).collect();
        assert_eq!(numbers.len(), if element == E4M3 { 254 } else { 248 });
        let values: Vec<_> = numbers.iter().map(|(_, value)| *value as f32).collect();
        let want: Vec<u8> = numbers.iter().map(|(code, _)| *code).collect();
        assert_eq!(cast(&values, largest(element), element), want);
    }
}

#[test]
fn gpu_rounds_to_the_nearest_code_and_ties_to_even() {
    for element in [E4M3, E5M2] {
        let mut values = Vec::new();
        for code in 0..127u8 {
            let (Some(low), Some(high)) = (value(code, element), value(code + 1, element)) else {
                continue;
            };
            let middle = ((low + high) / 2.0) as f32;
            values.extend([middle, middle.next_up(), middle.next_down(), -middle]);
        }
        let mut random = vec![0.0; 4000];
        Philox::new(3, 0).fill_normal(&mut random, 1.0);
        let range = largest(element).log2() as f32;
        values.extend(random.iter().enumerate().map(|(i, x)| x * (range - (i % 40) as f32).exp2()));
        values.retain(|x| f64::from(x.abs()) <= largest(element));
        values.extend([1e-30, -1e-30, 1e-42, 0.0, -0.0]);
        let got = cast(&values, largest(element), element);
        for (x, got) in values.iter().zip(got) {
            assert_eq!(got, nearest(f64::from(*x), element), "{x:e} in {element:?}");
        }
        // What is larger, with a scale of another matrix, stays the largest number; NaN stays NaN.
        let top = nearest(largest(element), element);
        let beyond = cast(&[1e9, -1e9, f32::INFINITY, f32::NAN], largest(element), element);
        assert_eq!(beyond[..3], [top, top | 128, top]);
        // Of e5m2 several codes are NaN.
        assert!(beyond[3] & 127 > if element == Element::E5M2 { 0x7c } else { 0x7e }, "{beyond:?}");
    }
}

fn normal(shape: [usize; 2], stream: u64) -> Tensor {
    let mut x = Tensor::zeros(shape).unwrap();
    Philox::new(41, stream).fill_normal(x.data_mut(), 1.0);
    x
}

/// What is multiplied instead of `x`, and the scale.
fn quantized(x: &[f32], element: Element) -> (Vec<u8>, f64) {
    let amax = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let factor = largest(element) as f32 / amax;
    (x.iter().map(|x| nearest(f64::from(x * factor), element)).collect(), 1.0 / f64::from(factor))
}

#[test]
fn gpu_copies_are_the_codes_of_the_matrix_and_of_its_transpose() {
    for (index, (n, w)) in
        [(16, 16), (16, 208), (48, 80), (144, 64), (64, 128)].into_iter().enumerate()
    {
        for dtype in DTYPES {
            for element in [E4M3, E5M2] {
                let x = normal([n, w], index as u64).cast(dtype).unwrap();
                let (want, scale) = quantized(x.to_f32().unwrap().data(), element);
                let x = x.to_device(GPU).unwrap();
                for copies in [Copies::Rows, Copies::Columns, Copies::Both] {
                    let matrix = Fp8::new(&x, (n, w), element, copies).unwrap();
                    let (rows, columns, scales) = matrix.parts();
                    assert_eq!(
                        (rows.is_none(), columns.is_none()),
                        (copies == Copies::Columns, copies == Copies::Rows)
                    );
                    if let Some(rows) = rows {
                        assert_eq!(codes(rows), want, "{n} × {w}, {dtype}");
                    }
                    if let Some(columns) = columns {
                        let got = codes(columns);
                        let transposed = (0..n * w).map(|i| got[i % w * n + i / w]);
                        assert!(
                            transposed.eq(want.iter().copied()),
                            "{n} × {w}, {dtype}, transposed"
                        );
                    }
                    let found = f64::from(scales.to_host().unwrap().data()[1]);
                    assert!((found / scale - 1.0).abs() < 1e-6, "scale {found}, not {scale}");
                }
            }
        }
    }
}

#[test]
fn gpu_scales_of_odd_matrices_are_harmless() {
    let scale = |values: Vec<f32>| {
        let x = Tensor::from_slice(&values, [16, 16]).unwrap().to_device(GPU).unwrap();
        let matrix = Fp8::new(&x, (16, 16), E4M3, Copies::Rows).unwrap();
        let (rows, _, scales) = matrix.parts();
        (codes(rows.unwrap()), scales.to_host().unwrap().data()[1])
    };
    assert_eq!(scale(vec![0.0; 256]), (vec![0; 256], 1.0));
    let (tiny, factor) = scale(vec![1e-42; 256]);
    assert!(factor.is_finite() && tiny.iter().all(|code| *code != 127), "{tiny:?}");
    // A number that is none makes the product none.
    let with = |odd: f32| [vec![odd], vec![1.0; 255]].concat();
    let (codes, factor) = scale(with(f32::NAN));
    assert!(codes[0] == 127 || factor.is_nan());
    assert!(!scale(with(f32::INFINITY)).1.is_finite());
}

/// Whether the GPU multiplies 8-bit floats: the emulated one does.
fn has_fp8() -> bool {
    cuda::device_info(0).unwrap().capability >= cuda::FP8_CAPABILITY
}

struct Run {
    y: Vec<f32>,
    /// Of x, W and the bias.
    grads: Vec<Vec<f32>>,
}

const SIZE: (usize, usize, usize) = (48, 80, 144);

/// The map of `x` in bf16 and the gradients for the output's gradient `dy`.
fn run([x, w, bias, dy]: &[Tensor; 4], layout: WeightLayout, fp8: bool) -> Run {
    let leaf = |x: &Tensor| x.cast(DType::BF16).unwrap().to_device(GPU).unwrap().trainable();
    let [x, w, bias] = [x, w, bias].map(leaf);
    let map = Affine { fp8, ..Affine::new(&w, layout, Some(&bias)) };
    let y = x.affine(map).unwrap();
    let values = y.to_host().unwrap().to_vec();
    y.backward_with(dy.cast(DType::BF16).unwrap().to_device(GPU).unwrap()).unwrap();
    let grads = [x, w, bias].map(|x| x.grad().unwrap().to_host().unwrap().to_vec());
    Run { y: values, grads: grads.into() }
}

/// `[m, k]` times `[k, n]` in f64, by strides of the rows and columns of both.
fn product(
    (m, n, k): (usize, usize, usize),
    a: &[f64],
    sa: (usize, usize),
    b: &[f64],
    sb: (usize, usize),
) -> Vec<f64> {
    let at =
        |i: usize, j: usize| (0..k).map(|l| a[i * sa.0 + l * sa.1] * b[l * sb.0 + j * sb.1]).sum();
    (0..m * n).map(|i| at(i / n, i % n)).collect()
}

/// y, dx and dW in f64 of the given numbers.
fn exact(x: &[f64], w: &[f64], bias: &[f32], dy: &[f64], layout: WeightLayout) -> [Vec<f64>; 3] {
    let (n, n_out, n_in) = SIZE;
    // Strides of W's outputs and inputs.
    let (o, i) = if layout == OutIn { (n_in, 1) } else { (1, n_out) };
    let mut y = product((n, n_out, n_in), x, (n_in, 1), w, (i, o));
    y.iter_mut().enumerate().for_each(|(at, y)| *y += f64::from(bias[at % n_out]));
    let dx = product((n, n_in, n_out), dy, (n_out, 1), w, (o, i));
    let dw = match layout {
        OutIn => product((n_out, n_in, n), dy, (1, n_out), x, (n_in, 1)),
        InOut => product((n_in, n_out, n), x, (1, n_in), dy, (n_out, 1)),
    };
    [y, dx, dw]
}

fn inputs(layout: WeightLayout) -> [Tensor; 4] {
    let (n, n_out, n_in) = SIZE;
    let w = if layout == OutIn { [n_out, n_in] } else { [n_in, n_out] };
    let bias = Tensor::from_slice(&normal([1, n_out], 2).to_vec(), [n_out]).unwrap();
    let rounded = |x: Tensor| x.cast(DType::BF16).unwrap().to_f32().unwrap().detach();
    // Gradients are far smaller than activations.
    let mut dy = normal([n, n_out], 3);
    dy.data_mut().iter_mut().for_each(|dy| *dy *= 1e-4);
    [normal([n, n_in], 0), normal(w, 1), bias, dy].map(rounded)
}

/// The error relative to the largest magnitude, however small that is.
fn error(got: &[f32], want: &[f64]) -> f64 {
    let size = want.iter().fold(0.0f64, |m, w| m.max(w.abs()));
    relative_error(
        got.iter().map(|g| f64::from(*g) / size),
        &want.iter().map(|w| w / size).collect::<Vec<_>>(),
    )
}

/// The root mean square of the errors relative to that of the numbers.
fn distance(got: &[f32], want: &[f64]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let errors = squares(&mut got.iter().zip(want).map(|(g, w)| f64::from(*g) - w));
    (errors / squares(&mut want.iter().copied())).sqrt()
}

#[test]
fn gpu_maps_in_fp8_are_those_of_the_codes_and_near_those_of_the_numbers() {
    if !has_fp8() {
        return;
    }
    for layout in [OutIn, InOut] {
        let inputs = inputs(layout);
        let Run { y, grads } = run(&inputs, layout, true);
        let [x, w, bias, dy] = &inputs;
        let numbers = |x: &Tensor, element| -> Vec<f64> {
            let (codes, scale) = quantized(x.data(), element);
            codes.iter().map(|code| value(*code, element).unwrap() * scale).collect()
        };
        let of_codes =
            exact(&numbers(x, E4M3), &numbers(w, E4M3), bias.data(), &numbers(dy, E5M2), layout);
        let plain = |x: &Tensor| x.data().iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
        let of_numbers = exact(&plain(x), &plain(w), bias.data(), &plain(dy), layout);
        // Results except dW are rounded to bf16, which has 8 bits; tensor cores add 8-bit
        // products with some 14 bits. A code has 4 bits, of dy 3: root mean squares of the rounding
        // are 2.5 % and 5 % of a factor, so 3.6 % of a product of x and W and 5.7 % of one with dy,
        // and of their sums.
        for (what, got, index, tight, loose) in [
            ("y", &y, 0, 4e-3, 4e-2),
            ("dx", &grads[0], 1, 4e-3, 6.5e-2),
            ("dW", &grads[1], 2, 1e-3, 6.5e-2),
        ] {
            let (off, far) = (error(got, &of_codes[index]), distance(got, &of_numbers[index]));
            assert!(
                off < tight,
                "{layout:?}: {what} is off by {off:.1e} from the product of the codes"
            );
            assert!(far < loose, "{layout:?}: {what} is off by {far:.1e}");
            assert!(far > 2e-2, "{layout:?}: {what} is off by {far:.1e} only: is it in fp8?");
        }
        // The gradient of the bias is a sum of numbers that were never in 8 bits.
        let (_, n_out, _) = SIZE;
        let sums: Vec<f64> =
            (0..n_out).map(|o| plain(dy).iter().skip(o).step_by(n_out).sum()).collect();
        assert!(error(&grads[2], &sums) < 1e-6);
        let again = run(&inputs, layout, true);
        assert_eq!((y, grads), (again.y, again.grads), "{layout:?}: bits differ");
    }
}

#[test]
fn gpu_maps_are_in_bf16_where_fp8_is_refused_or_not_recorded() {
    let inputs = inputs(OutIn);
    let plain = run(&inputs, OutIn, false);
    let refused =
        cuda::with_plain_products(|| (run(&inputs, OutIn, true), run(&inputs, OutIn, false)));
    assert_eq!((&refused.0.y, &refused.0.grads), (&refused.1.y, &refused.1.grads));
    let there = |x: &Tensor| x.cast(DType::BF16).unwrap().to_device(GPU).unwrap();
    let [x, w, bias] = [0, 1, 2].map(|i| there(&inputs[i]));
    let map = Affine { fp8: true, ..Affine::new(&w, OutIn, Some(&bias)) };
    let y = no_grad(|| x.affine(map)).unwrap();
    assert_eq!(y.to_host().unwrap().to_vec(), plain.y);
}

/// Feed-forward layers take their parts' ways.
#[test]
fn gpu_feed_forward_layers_in_fp8_are_near_those_in_bf16() {
    if !has_fp8() {
        return;
    }
    let there = |x: Tensor| x.cast(DType::BF16).unwrap().to_device(GPU).unwrap().trainable();
    let run = |fp8: bool, is_gated: bool| {
        let [x, up, gate, down] = [[32, 64], [96, 64], [96, 64], [64, 96]];
        let x = there(normal(x, 0));
        let mut weights =
            [up, gate, down].map(|shape| normal(shape, shape[0] as u64 + u64::from(is_gated)));
        weights.iter_mut().for_each(|w| w.data_mut().iter_mut().for_each(|w| *w *= 0.1));
        let [up, gate, down] = weights.map(there);
        let map = |weight| Affine { fp8, ..Affine::new(weight, OutIn, None) };
        let y = match is_gated {
            true => {
                let (gate, up) = (x.affine(map(&gate)).unwrap(), x.affine(map(&up)).unwrap());
                gate.gated_linear(&up, Activation::Silu, map(&down)).unwrap()
            }
            false => x.feed_forward(map(&up), Activation::GeluTanh, map(&down)).unwrap(),
        };
        let values = y.to_host().unwrap().to_vec();
        y.mul(&y).unwrap().to_f32().unwrap().sum().unwrap().backward().unwrap();
        let grads = [x, up, down].map(|x| x.grad().unwrap().to_host().unwrap().to_vec());
        [vec![values], grads.into()].concat()
    };
    for is_gated in [false, true] {
        for (index, (got, want)) in run(true, is_gated).iter().zip(run(false, is_gated)).enumerate()
        {
            let want: Vec<f64> = want.iter().map(|w| f64::from(*w)).collect();
            let off = error(got, &want);
            assert!(
                (1e-3..0.12).contains(&off),
                "gated {is_gated}: result {index} is off by {off:.1e}"
            );
        }
    }
}
