//! Muon against PyTorch in f64, on the CPU and on GPU 0, and against itself.

use safetensors::SafeTensors;

use super::polar::{STEPS, orthogonal_factor};
use super::*;
use crate::inplace::SquaredGradNorm;
use crate::testing::hold_settings;
use crate::{
    DType, Device, Init, MatrixForm, OutputParts, ParamBuilder, ParamStore, Philox, Role, Source,
    available_isas, isa, set_isa, threads, tile16,
};

const GPU: Device = Device::Cuda(0);

fn normal(n: usize, stream: u64, std: f32) -> Vec<f32> {
    let mut x = vec![0.0; n];
    Philox::new(3, stream).fill_normal(&mut x, std);
    x
}

/// A matrix of the engine with its state.
struct Matrix {
    store: ParamStore,
    momentum: Tensor,
    second: Tensor,
}

impl Matrix {
    /// A matrix with `rows` rows and `cols` columns in memory.
    fn new(values: &[f32], [rows, cols]: [usize; 2], form: MatrixForm) -> Self {
        let load =
            |_: &str, shape| Tensor::from_slice(values, shape).map(Some).map_err(|e| e.to_string());
        let mut store = ParamStore::default();
        let source = Source::Load { load: &load, stored: None, seed: 0 };
        let mut builder = ParamBuilder::new(&mut store, &source);
        let param = builder.param("w", Role::Mlp, [rows, cols], Init::Constant(0.0)).unwrap();
        param.set_form(form);
        let momentum = Tensor::zeros([rows, cols]).unwrap();
        let second = Tensor::zeros([muon_moments(&param)]).unwrap();
        Self { store, momentum, second }
    }

    fn to(mut self, device: Device, dtype: DType) -> Self {
        self.store.to_device(device, dtype).unwrap();
        self.momentum = self.momentum.to_device(device).unwrap();
        self.second = self.second.to_device(device).unwrap();
        self
    }

    fn param(&self) -> &Param {
        &self.store.params()[0]
    }

    /// Gives the parameter a gradient: that of Σ w g is g.
    fn set_grad(&self, grad: &[f32]) {
        let value = self.param().tensor();
        let g = Tensor::from_slice(grad, value.shape()).unwrap();
        let g = g.to_device(value.device()).unwrap().cast(value.dtype()).unwrap();
        value.mul(&g).unwrap().sum().unwrap().backward().unwrap();
    }

    fn item(&mut self) -> MuonItem<'_> {
        let param = &self.store.params()[0];
        MuonItem { param, momentum: &mut self.momentum, second: &mut self.second }
    }

    fn step(&mut self, grad: &[f32], rule: Muon) {
        self.set_grad(grad);
        muon_params(&mut [self.item()], rule, None).unwrap();
        self.param().clear_grad();
    }

    fn values(&self) -> Vec<f32> {
        self.param().to_host().unwrap().to_vec()
    }

    /// The bits of everything.
    fn bits(&self) -> Vec<u32> {
        let state = [&self.momentum, &self.second].map(|x| x.to_host().unwrap().to_vec());
        let all = [self.values()].into_iter().chain(state).flatten();
        all.map(f32::to_bits).collect()
    }
}

fn rule(lr: f32) -> Muon {
    Muon {
        lr,
        momentum: 0.9,
        beta2: 0.95,
        weight_decay: 0.2,
        cautious: true,
        grad_scale: 1.0,
        moves: true,
    }
}

struct Golden {
    bytes: Vec<u8>,
    settings: serde_json::Value,
    f32_errors: serde_json::Value,
}

impl Golden {
    fn load() -> Self {
        let root = std::env::var("CARGO_MANIFEST_DIR");
        let root = root.as_deref().unwrap_or(env!("CARGO_MANIFEST_DIR"));
        let bytes = std::fs::read(format!("{root}/tests/golden/muon.safetensors")).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().clone().unwrap();
        let json = |key: &str| serde_json::from_str(&metadata[key]).unwrap();
        Self { settings: json("settings"), f32_errors: json("f32"), bytes }
    }

    fn values(&self, name: &str) -> (Vec<f32>, Vec<usize>) {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = file.tensor(name).unwrap();
        let values = tensor.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
        (values.collect(), tensor.shape().to_vec())
    }

    fn rule(&self, step: usize) -> Muon {
        let number = |value: &serde_json::Value| value.as_f64().unwrap() as f32;
        Muon {
            lr: number(&self.settings["lr"][step - 1]),
            momentum: number(&self.settings["momentum"][step - 1]),
            beta2: number(&self.settings["beta2"]),
            weight_decay: number(&self.settings["weight_decay"]),
            ..rule(0.0)
        }
    }

    /// The largest error of PyTorch's f32 in a tensor, itself at least half a unit in the last
    /// place.
    fn f32_error(&self, name: &str) -> f64 {
        self.f32_errors[name].as_f64().unwrap().max(3e-8)
    }
}

/// How a golden matrix `[outputs, inputs]` is stored for a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stored {
    Plain,
    Transposed,
    /// q, k and v of each head of four outputs in turn.
    ByHead,
}

impl Stored {
    /// The stored place of each element of a matrix `[outputs, inputs]`.
    fn places(self, n_out: usize, n_in: usize) -> Vec<usize> {
        let by_head = |o: usize| {
            let (part, o) = (o / (n_out / 3), o % (n_out / 3));
            o / 4 * 12 + part * 4 + o % 4
        };
        let place = |(o, i)| match self {
            Self::Plain => o * n_in + i,
            Self::Transposed => i * n_out + o,
            Self::ByHead => by_head(o) * n_in + i,
        };
        (0..n_out).flat_map(|o| (0..n_in).map(move |i| (o, i))).map(place).collect()
    }
}

fn stored(x: &[f32], places: &[usize]) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    places.iter().zip(x).for_each(|(place, x)| out[*place] = *x);
    out
}

fn read(x: &[f32], places: &[usize]) -> Vec<f32> {
    places.iter().map(|place| x[*place]).collect()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max)
}

const CASES: [(&str, OutputParts, Stored); 9] = [
    ("tall", OutputParts::Whole, Stored::Plain),
    ("tall", OutputParts::Whole, Stored::Transposed),
    ("wide", OutputParts::Whole, Stored::Plain),
    ("wide", OutputParts::Whole, Stored::Transposed),
    ("square", OutputParts::Whole, Stored::Plain),
    ("qkv", OutputParts::Qkv { q: 8, kv: 8 }, Stored::Plain),
    ("qkv", OutputParts::Qkv { q: 8, kv: 8 }, Stored::Transposed),
    ("qkv", OutputParts::QkvByHead { head_dim: 4 }, Stored::ByHead),
    ("grouped", OutputParts::Qkv { q: 8, kv: 4 }, Stored::Transposed),
];

/// Runs the ten steps of all cases; `allowed` is the error of a tensor for that of PyTorch's f32.
fn check_golden(place: impl Fn(Matrix) -> Matrix, what: &str, allowed: impl Fn(f64) -> f64) {
    let golden = Golden::load();
    for (name, parts, layout) in CASES {
        let (start, shape) = golden.values(&format!("{name}.p0"));
        let places = layout.places(shape[0], shape[1]);
        let transposed = layout == Stored::Transposed;
        let sides = if transposed { [shape[1], shape[0]] } else { [shape[0], shape[1]] };
        let form = MatrixForm { transposed, parts };
        let mut matrix = place(Matrix::new(&stored(&start, &places), sides, form));
        for step in 1..=10 {
            let (grad, _) = golden.values(&format!("{name}.g{step}"));
            matrix.step(&stored(&grad, &places), golden.rule(step));
            if [1, 2, 5, 10].contains(&step) {
                let key = format!("{name}.p{step}");
                let off = distance(&read(&matrix.values(), &places), &golden.values(&key).0);
                let allowed = allowed(golden.f32_error(&key));
                assert!(
                    off <= allowed,
                    "{what}: {key} {layout:?} is off by {off:.1e}, {allowed:.1e}"
                );
            }
        }
        let momentum = matrix.momentum.to_host().unwrap().to_vec();
        let off =
            distance(&read(&momentum, &places), &golden.values(&format!("{name}.momentum")).0);
        assert!(off <= allowed(1e-6), "{what}: momentum of {name} is off by {off:.1e}");
        let second = matrix.second.to_host().unwrap().to_vec();
        let off = distance(&second, &golden.values(&format!("{name}.second")).0);
        assert!(off <= allowed(3e-7), "{what}: second moment of {name} is off by {off:.1e}");
    }
}

#[test]
fn ten_steps_are_as_near_to_f64_as_those_of_pytorch_in_f32() {
    let _held = hold_settings();
    let best = isa();
    for isa in available_isas() {
        set_isa(isa).unwrap();
        check_golden(|matrix| matrix, &isa.to_string(), |f32| 4.0 * f32);
    }
    set_isa(best).unwrap();
}

#[test]
fn gpu_ten_steps_are_those_of_pytorch() {
    check_golden(|matrix| matrix.to(GPU, DType::F32), "f32", |f32| 4.0 * f32);
    // Products of bf16 keep 8 bits, and five steps multiply small singular values by 1000.
    check_golden(|matrix| matrix.to(GPU, DType::BF16), "bf16", |f32| 4e4 * f32);
    check_golden(|matrix| matrix.to(GPU, DType::F16), "f16", |f32| 4e4 * f32);
}

/// Columns made orthonormal, `[n, k]` by rows, in f64.
fn orthonormal(n: usize, k: usize, stream: u64) -> Vec<Vec<f64>> {
    let mut columns: Vec<Vec<f64>> = Vec::new();
    for i in 0..k {
        let mut x: Vec<f64> =
            normal(n, stream + i as u64, 1.0).into_iter().map(f64::from).collect();
        for _ in 0..2 {
            for other in &columns {
                let dot: f64 = other.iter().zip(&x).map(|(a, b)| a * b).sum();
                x.iter_mut().zip(other).for_each(|(x, o)| *x -= dot * o);
            }
        }
        let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
        columns.push(x.into_iter().map(|x| x / norm).collect());
    }
    columns
}

/// What the five steps make of a singular value.
fn polynomial(s: f64) -> f64 {
    let step = |s: f64, [a, b, c]: [f32; 3]| {
        let [a, b, c] = [a, b, c].map(f64::from);
        s * (a + b * s * s + c * s.powi(4))
    };
    STEPS.into_iter().fold(s, step)
}

#[test]
fn singular_vectors_stay_and_singular_values_become_nearly_one() {
    for (rows, cols) in [(12, 12), (12, 40), (40, 12), (200, 190), (7, 1), (1, 5)] {
        let side = rows.min(cols);
        let (left, right) = (orthonormal(rows, side, 100), orthonormal(cols, side, 900));
        // From 1 / 1.01 down to 1e-3, evenly in the exponent.
        let value = |k: usize| 1e-3f64.powf(k as f64 / (side.max(2) - 1) as f64) / 1.01;
        let mut x = vec![0.0f32; rows * cols];
        for i in 0..rows {
            for j in 0..cols {
                let sum: f64 = (0..side).map(|k| left[k][i] * value(k) * right[k][j]).sum();
                x[i * cols + j] = sum as f32;
            }
        }
        let found = orthogonal_factor(&x, rows, cols);
        for a in 0..side {
            for b in 0..side {
                let row = |i: usize| -> f64 {
                    (0..cols).map(|j| f64::from(found[i * cols + j]) * right[b][j]).sum()
                };
                let entry: f64 = (0..rows).map(|i| left[a][i] * row(i)).sum();
                let want = if a == b { polynomial(value(a)) } else { 0.0 };
                assert!((entry - want).abs() < 5e-5, "{rows}x{cols} {a},{b}: {entry} {want}");
            }
            let near = polynomial(value(a));
            // The band of five steps from 1e-3.
            assert!((0.85..1.15).contains(&near), "{} becomes {near}", value(a));
        }
    }
}

#[test]
fn in_bf16_singular_values_come_as_near_one_as_its_rounding_lets_them() {
    let _held = hold_settings();
    let before = tile16::chosen();
    for isa in tile16::available() {
        tile16::set(isa).unwrap();
        for (rows, cols) in [(12, 12), (12, 40), (40, 12), (100, 95), (7, 1)] {
            let side = rows.min(cols);
            let (left, right) = (orthonormal(rows, side, 100), orthonormal(cols, side, 900));
            // Rounding to 8 bits adds directions of about 1/500: smaller values would be lost.
            let value = |k: usize| 0.03f64.powf(k as f64 / (side.max(2) - 1) as f64) / 1.01;
            let mut x = vec![0.0f32; rows * cols];
            for i in 0..rows {
                for j in 0..cols {
                    let sum: f64 = (0..side).map(|k| left[k][i] * value(k) * right[k][j]).sum();
                    x[i * cols + j] = sum as f32;
                }
            }
            let found = super::rounded::orthogonal_factor(&x, rows, cols);
            for a in 0..side {
                for b in 0..side {
                    let row = |i: usize| -> f64 {
                        (0..cols).map(|j| f64::from(found[i * cols + j]) * right[b][j]).sum()
                    };
                    let entry: f64 = (0..rows).map(|i| left[a][i] * row(i)).sum();
                    let band = if a == b { 0.6..1.25 } else { -0.12..0.12 };
                    assert!(band.contains(&entry), "{isa} {rows}x{cols} {a},{b}: {entry}");
                }
            }
        }
    }
    tile16::set(before).unwrap();
}

fn two_steps(n_threads: usize, [rows, cols]: [usize; 2], form: MatrixForm) -> Vec<u32> {
    threads::set_n_threads(n_threads);
    let n = rows * cols;
    let mut matrix = Matrix::new(&normal(n, 1, 0.1), [rows, cols], form);
    for stream in [2, 3] {
        matrix.step(&normal(n, stream, 0.01), rule(0.02));
    }
    matrix.bits()
}

#[test]
fn threads_change_no_bit() {
    let _held = hold_settings();
    let before = threads::n_threads();
    let qkv = |transposed| MatrixForm { transposed, parts: OutputParts::Qkv { q: 128, kv: 64 } };
    let plain = MatrixForm::default();
    let halves = MatrixForm { parts: OutputParts::Halves, ..plain };
    for (sides, form) in [
        ([300, 400], plain),
        ([520, 180], plain),
        ([256, 160], qkv(false)),
        ([160, 256], qkv(true)),
        ([350, 90], halves),
    ] {
        let one = two_steps(1, sides, form);
        for n_threads in [2, 3] {
            assert!(two_steps(n_threads, sides, form) == one, "{n_threads} threads, {sides:?}");
        }
    }
    threads::set_n_threads(before);
}

/// Matrices of all kinds; each alone and all together.
#[test]
fn matrices_side_by_side_have_the_bits_of_each_alone() {
    let _held = hold_settings();
    let before = threads::n_threads();
    let sides = [[40, 40], [64, 16], [16, 64], [200, 30], [8, 8], [1, 9], [9, 1]];
    let all = || -> Vec<Matrix> {
        let one = |(i, [rows, cols]): (usize, &[usize; 2])| {
            Matrix::new(&normal(rows * cols, i as u64, 0.1), [*rows, *cols], MatrixForm::default())
        };
        sides.iter().enumerate().map(one).collect()
    };
    let grad = |i: usize| normal(sides[i][0] * sides[i][1], 50 + i as u64, 0.02);
    let mut alone = all();
    alone.iter_mut().enumerate().for_each(|(i, matrix)| matrix.step(&grad(i), rule(0.02)));
    for n_threads in [1, 2, 3, 7, 8] {
        threads::set_n_threads(n_threads);
        let mut together = all();
        together.iter().enumerate().for_each(|(i, matrix)| matrix.set_grad(&grad(i)));
        let mut items: Vec<_> = together.iter_mut().map(Matrix::item).collect();
        muon_params(&mut items, rule(0.02), None).unwrap();
        for (i, (alone, together)) in alone.iter().zip(&together).enumerate() {
            assert!(alone.bits() == together.bits(), "{n_threads} threads, {:?}", sides[i]);
        }
    }
    threads::set_n_threads(before);
}

/// A rule that changes everything it may, and one that must change nothing.
fn gathers_without_moving(place: impl Fn(Matrix) -> Matrix) {
    let n = 12 * 20;
    let start = || place(Matrix::new(&normal(n, 1, 0.1), [12, 20], MatrixForm::default()));
    let mut matrix = start();
    let before = matrix.values();
    matrix.step(&normal(n, 2, 0.5), Muon { moves: false, ..rule(0.02) });
    assert_eq!(matrix.values(), before);
    assert!(matrix.second.to_host().unwrap().data().iter().all(|x| *x == 0.0));
    let mut moved = start();
    moved.step(&normal(n, 2, 0.5), rule(0.02));
    let momentum = |m: &Matrix| m.momentum.to_host().unwrap().to_vec();
    assert_eq!(momentum(&matrix), momentum(&moved));
    assert_ne!(moved.values(), before);
    // Without a gradient nothing happens.
    let mut idle = start();
    muon_params(&mut [idle.item()], rule(0.02), None).unwrap();
    assert_eq!(idle.bits(), start().bits());
}

#[test]
fn gpu_and_cpu_momentum_gathers_in_steps_without_a_move() {
    gathers_without_moving(|matrix| matrix);
    gathers_without_moving(|matrix| matrix.to(GPU, DType::F32));
}

#[test]
fn gpu_and_cpu_clip_and_leave_matrices_alone_if_the_gradient_is_not_finite() {
    for device in [Device::Cpu, GPU] {
        let grad = normal(240, 2, 0.5);
        let start = || {
            Matrix::new(&normal(240, 1, 0.1), [12, 20], MatrixForm::default())
                .to(device, DType::F32)
        };
        let step = |matrix: &mut Matrix, max_norm: f32, loss: f32, rule: Muon| {
            matrix.set_grad(&grad);
            let grads = [matrix.param().grad().unwrap()];
            let loss = Tensor::full([1], loss).unwrap().to_device(device).unwrap();
            let squared_norm = SquaredGradNorm::of(&grads, &[loss]).unwrap();
            drop(grads);
            let clip = Clip { squared_norm: &squared_norm, max_norm };
            muon_params(&mut [matrix.item()], rule, Some(clip)).unwrap();
            matrix.param().clear_grad();
        };
        let mut matrix = start();
        step(&mut matrix, 1.0, f32::NAN, rule(0.02));
        assert_eq!(matrix.bits(), start().bits(), "{device}");
        // A clipped gradient is a smaller one.
        let norm = grad.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        let mut clipped = start();
        step(&mut clipped, 0.25, 1.0, rule(0.02));
        let mut scaled = start();
        step(&mut scaled, 0.0, 1.0, Muon { grad_scale: (0.25 / norm) as f32, ..rule(0.02) });
        let momentum = |m: &Matrix| m.momentum.to_host().unwrap().to_vec();
        assert!(distance(&momentum(&clipped), &momentum(&scaled)) < 1e-8, "{device}");
        assert!(distance(&clipped.values(), &scaled.values()) < 1e-6, "{device}");
    }
}

#[test]
fn gpu_repeats_its_bits_for_many_matrices_of_few_shapes() {
    let sides = [[24, 40], [24, 40], [40, 24], [24, 40], [33, 33]];
    let run = |dtype| -> Vec<Vec<u32>> {
        let one = |(i, [rows, cols]): (usize, &[usize; 2])| {
            let n = rows * cols;
            let matrix =
                Matrix::new(&normal(n, i as u64, 0.1), [*rows, *cols], MatrixForm::default());
            let matrix = matrix.to(GPU, dtype);
            matrix.set_grad(&normal(n, 70 + i as u64, 0.02));
            matrix
        };
        let mut all: Vec<Matrix> = sides.iter().enumerate().map(one).collect();
        let mut items: Vec<_> = all.iter_mut().map(Matrix::item).collect();
        muon_params(&mut items, rule(0.02), None).unwrap();
        all.iter().map(Matrix::bits).collect()
    };
    for dtype in [DType::F32, DType::BF16] {
        let first = run(dtype);
        assert!(first == run(dtype), "{dtype}");
        // Equal shapes, different matrices.
        assert_ne!(first[0], first[1]);
    }
}

#[test]
fn decay_that_is_not_cautious_takes_all_weights() {
    let start = normal(64, 1, 0.5);
    let after = |weight_decay, cautious| {
        let mut matrix = Matrix::new(&start, [8, 8], MatrixForm::default());
        matrix.step(&normal(64, 2, 0.5), Muon { weight_decay, cautious, ..rule(0.02) });
        matrix.values()
    };
    let (none, all, some) = (after(0.0, false), after(0.5, false), after(0.5, true));
    let decayed = |after: &[f32]| -> Vec<bool> {
        let differs = |(a, b): (&f32, &f32)| (a - b).abs() > 1e-6;
        after.iter().zip(&none).map(differs).collect()
    };
    assert!(decayed(&all).iter().all(|d| *d));
    for (i, decays) in decayed(&some).into_iter().enumerate() {
        // The update moves a weight towards 0 if it has the weight's sign.
        assert_eq!(decays, (start[i] - none[i]) * start[i] > 0.0, "weight {i}");
    }
}
