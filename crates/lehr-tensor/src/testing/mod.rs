//! What all op tests are derived from: cases, references in f64, goldens, finite differences.

mod golden;

use std::cell::Cell;

pub(crate) use golden::golden_cases;

use crate::{DType, Device, Philox, Result, Tensor};

/// A lock for tests that change, or depend on, the instruction set or the number of threads. All
/// tests of a process share both.
pub(crate) fn hold_settings() -> std::sync::MutexGuard<'static, ()> {
    static HELD: std::sync::Mutex<()> = std::sync::Mutex::new(());
    HELD.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

thread_local! {
    static IN_BF16: Cell<bool> = const { Cell::new(false) };
}

/// Whether a case runs with products in bf16: for ops whose inputs do not say it.
pub(crate) fn are_products_in_bf16() -> bool {
    IN_BF16.get()
}

/// A plain array in double precision: what references compute with.
#[derive(Clone, Debug)]
pub(crate) struct Array {
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<f64>,
}

impl Array {
    pub(crate) fn zeros(shape: &[usize]) -> Self {
        Self { shape: shape.to_vec(), data: vec![0.0; shape.iter().product()] }
    }

    pub(crate) fn last_dim(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    pub(crate) fn n_rows(&self) -> usize {
        self.shape[..self.shape.len().saturating_sub(1)].iter().product()
    }

    pub(crate) fn with_last_dim(&self, d: usize) -> Vec<usize> {
        let mut shape = self.shape.clone();
        *shape.last_mut().unwrap() = d;
        shape
    }

    fn of(tensor: &Tensor) -> Self {
        let data = tensor.data().iter().map(|v| f64::from(*v)).collect();
        Self { shape: tensor.shape().to_vec(), data }
    }
}

type Fast = Box<dyn Fn(&[Tensor]) -> Result<Vec<Tensor>>>;
type Reference = Box<dyn Fn(&[Array]) -> Vec<Array>>;

/// The op under test and its specification, over the same float inputs. Integer inputs and
/// parameters are captured by both closures.
pub(crate) struct Pair {
    pub(crate) fast: Fast,
    pub(crate) reference: Reference,
}

impl Pair {
    /// Ops of one output.
    pub(crate) fn one(
        fast: impl Fn(&[Tensor]) -> Result<Tensor> + 'static,
        reference: impl Fn(&[Array]) -> Array + 'static,
    ) -> Self {
        Self::many(move |x| Ok(vec![fast(x)?]), move |x| vec![reference(x)])
    }

    /// Ops of several outputs.
    pub(crate) fn many(
        fast: impl Fn(&[Tensor]) -> Result<Vec<Tensor>> + 'static,
        reference: impl Fn(&[Array]) -> Vec<Array> + 'static,
    ) -> Self {
        Self { fast: Box::new(fast), reference: Box::new(reference) }
    }
}

/// One op on one set of inputs.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) inputs: Vec<Tensor>,
    pub(crate) pair: Pair,
    pub(crate) golden: Option<Golden>,
    pub(crate) tolerance: Tolerance,
    /// Whether the op is differentiable at these inputs (a cast to 16 bits is a staircase: its
    /// gradient is checked against the golden only).
    pub(crate) smooth: bool,
    /// Largest error of each output element relative to that element, if it has one of its own.
    pub(crate) each: Option<f64>,
}

/// What PyTorch computed: outputs, the gradients given to them, and those of the inputs.
pub(crate) struct Golden {
    pub(crate) outputs: Vec<Vec<f32>>,
    pub(crate) cotangents: Vec<Vec<f32>>,
    pub(crate) grads: Vec<Vec<f32>>,
}

/// Largest error allowed, relative to the largest magnitude of the array (at least 0.1: inputs are
/// of order 1, and so are the terms whose difference a smaller gradient is).
///
/// f32 has 24 bits; sums of n products lose about √n of 6e-8. The measured errors of all ops lie
/// at least three times below these bounds.
#[derive(Clone, Copy)]
pub(crate) struct Tolerance {
    pub(crate) output: f64,
    pub(crate) grad: f64,
}

impl Tolerance {
    pub(crate) const F32: Self = Self { output: 5e-6, grad: 2e-5 };
}

impl Case {
    /// A case with normal inputs of the given shapes.
    pub(crate) fn random(name: &str, shapes: &[Vec<usize>], pair: Pair) -> Self {
        let inputs = shapes
            .iter()
            .enumerate()
            .map(|(i, shape)| {
                let mut x = Tensor::zeros(shape).unwrap();
                Philox::new(17, i as u64).fill_normal(x.data_mut(), 1.0);
                x
            })
            .collect();
        Self {
            name: name.to_owned(),
            inputs,
            pair,
            golden: None,
            tolerance: Tolerance::F32,
            smooth: true,
            each: None,
        }
    }

    /// The same case for an op that adds nothing up: each output, however small, is within the
    /// relative error `each`. [`Tolerance`] alone would let an element vanish that is small beside
    /// the largest.
    pub(crate) fn each(self, each: f64) -> Self {
        Self { each: Some(each), ..self }
    }

    /// The same case with every input passed through `f` (to stay within an op's domain).
    pub(crate) fn map_inputs(mut self, f: impl Fn(f32) -> f32) -> Self {
        for x in &mut self.inputs {
            x.data_mut().iter_mut().for_each(|v| *v = f(*v));
        }
        self
    }

    /// The same case with another tolerance; say why where you call it.
    pub(crate) fn tolerance(self, output: f64, grad: f64) -> Self {
        Self { tolerance: Tolerance { output, grad }, ..self }
    }

    /// The same case for an op that is not differentiable in the sense of finite differences.
    pub(crate) fn not_smooth(self) -> Self {
        Self { smooth: false, ..self }
    }

    /// Outputs of the op, and the gradients of its inputs for the given output gradients.
    pub(crate) fn run(&self, cotangents: Option<&[Vec<f32>]>) -> (Vec<Tensor>, Vec<Vec<f32>>) {
        self.run_on(Device::Cpu, DType::F32, cotangents)
    }

    /// [`Case::run`] on a device with float inputs in `dtype`; results are on the CPU.
    pub(crate) fn run_on(
        &self,
        device: Device,
        dtype: DType,
        cotangents: Option<&[Vec<f32>]>,
    ) -> (Vec<Tensor>, Vec<Vec<f32>>) {
        let there = |x: &Tensor| x.cast(dtype).unwrap().to_device(device).unwrap();
        let inputs: Vec<_> = self.inputs.iter().map(there).collect();
        self.run_with(&inputs, device, cotangents)
    }

    /// [`Case::run`] with products in bf16: every matrix among the inputs has panels.
    pub(crate) fn run_in_bf16(
        &self,
        cotangents: Option<&[Vec<f32>]>,
    ) -> (Vec<Tensor>, Vec<Vec<f32>>) {
        let with_panels = |x: &Tensor| {
            let is_matrix = x.shape().len() == 2 && x.dtype() == DType::F32;
            x.clone().with_panels(is_matrix.then(Default::default))
        };
        let inputs: Vec<_> = self.inputs.iter().map(with_panels).collect();
        IN_BF16.set(true);
        let results = self.run_with(&inputs, Device::Cpu, cotangents);
        IN_BF16.set(false);
        results
    }

    fn run_with(
        &self,
        inputs: &[Tensor],
        device: Device,
        cotangents: Option<&[Vec<f32>]>,
    ) -> (Vec<Tensor>, Vec<Vec<f32>>) {
        let inputs: Vec<_> = inputs.iter().map(Tensor::trainable).collect();
        let outputs = (self.pair.fast)(&inputs).unwrap();
        let here = |y: &Tensor| y.to_host().unwrap();
        let Some(cotangents) = cotangents else {
            return (outputs.iter().map(here).collect(), Vec::new());
        };
        let mut loss: Option<Tensor> = None;
        for (y, c) in outputs.iter().zip(cotangents) {
            let c = Tensor::from_slice(c, y.shape()).unwrap();
            let c = c.cast(y.dtype()).unwrap().to_device(device).unwrap();
            let part = y.mul(&c).unwrap().to_f32().unwrap().sum().unwrap();
            loss = Some(match loss {
                Some(loss) => loss.add(&part).unwrap(),
                None => part,
            });
        }
        if let Some(loss) = loss {
            loss.backward().unwrap();
        }
        let grads = inputs.iter().map(|x| match x.grad() {
            Some(grad) => grad.to_host().unwrap().to_vec(),
            None => vec![0.0; x.shape().n_elements()],
        });
        let grads = grads.collect();
        (outputs.iter().map(here).collect(), grads)
    }

    /// Random output gradients of the right sizes.
    pub(crate) fn cotangents(&self, outputs: &[Tensor]) -> Vec<Vec<f32>> {
        let random = |(i, y): (usize, &Tensor)| {
            let mut c = vec![0.0; y.shape().n_elements()];
            Philox::new(23, i as u64).fill_normal(&mut c, 1.0);
            c
        };
        outputs.iter().enumerate().map(random).collect()
    }

    pub(crate) fn reference(&self) -> Vec<Array> {
        let inputs: Vec<_> = self.inputs.iter().map(Array::of).collect();
        (self.pair.reference)(&inputs)
    }

    /// Probes the gradient of input `which` by central differences of the f64 reference: pairs of
    /// element index and derivative of `Σ output · cotangent`.
    pub(crate) fn numeric_grad(&self, which: usize, cotangents: &[Vec<f32>]) -> Vec<(usize, f64)> {
        /// Elements probed per input.
        const N_PROBES: usize = 24;
        let mut inputs: Vec<_> = self.inputs.iter().map(Array::of).collect();
        let n = inputs[which].data.len();
        let stream = Philox::new(31, which as u64);
        let mut probes: Vec<usize> = if n <= N_PROBES {
            (0..n).collect()
        } else {
            (0..N_PROBES as u64).map(|i| stream.block(i)[0] as usize % n).collect()
        };
        probes.dedup();
        let mut out = Vec::new();
        for index in probes {
            let x = inputs[which].data[index];
            let h = 1e-5 * x.abs().max(1.0);
            let mut at = |x: f64| {
                inputs[which].data[index] = x;
                let outputs = (self.pair.reference)(&inputs);
                let dot = |(y, c): (&Array, &Vec<f32>)| -> f64 {
                    y.data.iter().zip(c).map(|(y, c)| y * f64::from(*c)).sum()
                };
                outputs.iter().zip(cotangents).map(dot).sum::<f64>()
            };
            let slope = (at(x + h) - at(x - h)) / (2.0 * h);
            inputs[which].data[index] = x;
            out.push((index, slope));
        }
        out
    }
}

/// The largest difference relative to the element it belongs to; NaN counts as infinite. Below
/// 1e-30, where f32 is subnormal after a few products, differences count relative to that.
pub(crate) fn error_of_each(got: impl Iterator<Item = f64>, want: &[f64]) -> f64 {
    let mut worst = 0.0f64;
    for (g, w) in got.zip(want) {
        let error = if g == *w { 0.0 } else { (g - w).abs() / w.abs().max(1e-30) };
        worst = if error.is_nan() { f64::INFINITY } else { worst.max(error) };
    }
    worst
}

/// The largest difference relative to the largest magnitude of `want`; NaN counts as infinite.
pub(crate) fn relative_error(got: impl Iterator<Item = f64>, want: &[f64]) -> f64 {
    let scale = want.iter().fold(0.1f64, |m, w| m.max(w.abs()));
    let mut worst = 0.0f64;
    for (g, w) in got.zip(want) {
        let error = if g == *w { 0.0 } else { (g - w).abs() / scale };
        worst = if error.is_nan() { f64::INFINITY } else { worst.max(error) };
    }
    worst
}

#[test]
fn a_small_element_that_is_wrong_is_seen_beside_a_large_one() {
    let (want, got) = ([1.0, 1e-6], [1.0, 0.0]);
    assert!(relative_error(got.into_iter(), &want) < Tolerance::F32.output);
    assert_eq!(error_of_each(got.into_iter(), &want), 1.0);
    assert!(error_of_each([f64::NAN, 1e-6].into_iter(), &want).is_infinite());
}
