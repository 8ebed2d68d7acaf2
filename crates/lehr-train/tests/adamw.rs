//! AdamW against ten steps of PyTorch's, and against itself on any slice and any number of threads.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;
use std::sync::Mutex;

use lehr_tensor::inplace::{AdamW, Clip, SquaredGradNorm, adamw};
use lehr_tensor::{
    Init, ParamBuilder, ParamStore, Philox, Role, Shape, Source, Tensor, available_isas, set_isa,
    threads,
};
use lehr_train::recipe::AdamwConfig;
use lehr_train::{Optimizer, Update};
use safetensors::SafeTensors;

/// Number of threads and instruction set are those of the whole process.
static ALONE: Mutex<()> = Mutex::new(());

struct Golden {
    bytes: Vec<u8>,
}

impl Golden {
    fn load() -> Self {
        let golden = "../lehr-tensor/tests/golden/adamw.safetensors";
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(golden);
        let bytes = std::fs::read(&path);
        Self { bytes: bytes.unwrap_or_else(|e| panic!("reading {}: {e}", path.display())) }
    }

    fn values(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = file.tensor(name).unwrap();
        tensor.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    /// The rule of step `step`.
    fn rule(&self, step: u64) -> AdamW {
        let (_, header) = SafeTensors::read_metadata(&self.bytes).unwrap();
        let text = &header.metadata().as_ref().unwrap()["settings"];
        let settings: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(settings["steps"], 10);
        let number = |key: &str| settings[key].as_f64().unwrap() as f32;
        AdamW {
            lr: number("lr"),
            beta1: number("beta1"),
            beta2: number("beta2"),
            eps: number("eps"),
            weight_decay: number("weight_decay"),
            cautious: false,
            lazy: false,
            grad_scale: 1.0,
            step,
        }
    }
}

/// Largest difference of two tensors in units of the last place of numbers near 1 (or near the
/// number itself, if it is larger).
fn error(found: &[f32], want: &[f32]) -> f32 {
    assert_eq!(found.len(), want.len());
    let one = |(f, w): (&f32, &f32)| (f - w).abs() / w.abs().max(1.0) / f32::EPSILON;
    found.iter().zip(want).map(one).fold(0.0, f32::max)
}

#[test]
fn ten_steps_equal_those_of_pytorch_with_every_instruction_set() {
    let _alone = ALONE.lock().unwrap();
    let golden = Golden::load();
    let best = lehr_tensor::isa();
    for isa in available_isas() {
        set_isa(isa).unwrap();
        for tensor in 0..3 {
            let mut p = golden.values(&format!("p0.{tensor}"));
            let (mut m, mut v) = (vec![0.0; p.len()], vec![0.0; p.len()]);
            for step in 1..=10 {
                let g = golden.values(&format!("g{step}.{tensor}"));
                adamw(&mut p, &g, &mut m, &mut v, golden.rule(step));
                let error = error(&p, &golden.values(&format!("p{step}.{tensor}")));
                assert!(
                    error <= 4.0,
                    "{isa}: tensor {tensor} is off by {error} ulp at step {step}"
                );
            }
        }
    }
    set_isa(best).unwrap();
}

#[test]
fn clipping_is_the_same_as_a_smaller_gradient() {
    let golden = Golden::load();
    let start = golden.values("p0.1");
    let g = golden.values("g1.1");
    let smaller: Vec<f32> = g.iter().map(|g| g * 0.25).collect();
    let run = |g: &[f32], grad_scale| {
        let (mut p, mut m, mut v) = (start.clone(), vec![0.1; 33], vec![0.2; 33]);
        adamw(&mut p, g, &mut m, &mut v, AdamW { grad_scale, ..golden.rule(3) });
        [p, m, v]
    };
    assert_eq!(run(&g, 0.25), run(&smaller, 1.0));
    assert_ne!(run(&g, 1.0), run(&smaller, 1.0));
}

/// Parameter, gradient and moments of `n` numbers.
fn draw(n: usize) -> [Vec<f32>; 4] {
    let fill = |stream, std: f32| {
        let mut values = vec![0.0; n];
        Philox::new(11, stream).fill_normal(&mut values, std);
        values
    };
    let v = fill(3, 0.01).into_iter().map(|x: f32| x * x).collect();
    [fill(0, 1.0), fill(1, 0.1), fill(2, 0.05), v]
}

fn bits_after(n_threads: usize, data: &[Vec<f32>; 4], rule: AdamW) -> [Vec<u32>; 3] {
    threads::set_n_threads(n_threads);
    let [mut p, g, mut m, mut v] = data.clone();
    adamw(&mut p, &g, &mut m, &mut v, rule);
    [p, m, v].map(|x| x.into_iter().map(f32::to_bits).collect())
}

#[test]
fn threads_and_odd_lengths_change_no_bit() {
    let _alone = ALONE.lock().unwrap();
    let rule = Golden::load().rule(5);
    let before = threads::n_threads();
    for n in [1, 3, 7, 15, 16, 17, 31, 33, 16_383, 16_385, 3 * 16_384 + 5] {
        let data = draw(n);
        let one = bits_after(1, &data, rule);
        assert_eq!(bits_after(2, &data, rule), one, "2 threads, {n} numbers");
        assert_eq!(bits_after(3, &data, rule), one, "3 threads, {n} numbers");
        // What happens to a number does not depend on where it stands.
        for i in [0, n / 2, n - 1] {
            let alone = bits_after(1, &data.each_ref().map(|x| vec![x[i]]), rule);
            assert_eq!(alone, one.each_ref().map(|x| vec![x[i]]), "number {i} of {n}");
        }
    }
    threads::set_n_threads(before);
}

#[test]
fn a_lazy_update_leaves_alone_what_has_no_gradient() {
    let _alone = ALONE.lock().unwrap();
    let rule = Golden::load().rule(5);
    let best = lehr_tensor::isa();
    for isa in available_isas() {
        set_isa(isa).unwrap();
        for n in [1, 17, 64, 1000, 16_384 + 130] {
            let mut data = draw(n);
            // Whole rows of 100, and single numbers of the other rows.
            for (i, g) in data[1].iter_mut().enumerate() {
                if i / 100 % 3 != 0 || i % 7 == 0 {
                    *g = if i % 2 == 0 { 0.0 } else { -0.0 };
                }
            }
            let all = bits_after(1, &data, rule);
            let lazy = bits_after(1, &data, AdamW { lazy: true, ..rule });
            let before = [0, 2, 3].map(|part| data[part].iter().map(|x| x.to_bits()));
            for ((all, lazy), before) in all.iter().zip(&lazy).zip(before) {
                for (i, before) in before.enumerate() {
                    let want = if data[1][i] == 0.0 { before } else { all[i] };
                    assert_eq!(lazy[i], want, "{isa}: number {i} of {n}");
                }
            }
        }
    }
    set_isa(best).unwrap();
}

/// Parameters `matrix [5, 7]`, `vector [33]` and `wte.weight [5, 7]`, started from the golden.
fn store(golden: &Golden) -> ParamStore {
    let load = |name: &str, shape: Shape| {
        let key = if name == "vector" { "p0.1" } else { "p0.0" };
        Tensor::from_slice(&golden.values(key), shape).map(Some).map_err(|e| e.to_string())
    };
    let mut store = ParamStore::default();
    let source = Source::Load { load: &load, stored: None, seed: 0 };
    let mut p = ParamBuilder::new(&mut store, &source);
    p.param("matrix", Role::Mlp, [5, 7], Init::Constant(0.0)).unwrap();
    p.param("vector", Role::Bias, [33], Init::Constant(0.0)).unwrap();
    p.param("wte.weight", Role::TokenEmbedding, [5, 7], Init::Constant(0.0)).unwrap();
    store
}

/// What the kernel alone makes of tensor `tensor` of the golden under a changed rule.
struct Alone {
    tensor: usize,
    p: Vec<f32>,
    m: Vec<f32>,
    v: Vec<f32>,
}

impl Alone {
    fn new(golden: &Golden, tensor: usize) -> Self {
        let p = golden.values(&format!("p0.{tensor}"));
        Self { tensor, m: vec![0.0; p.len()], v: vec![0.0; p.len()], p }
    }

    fn step(&mut self, golden: &Golden, rule: AdamW) -> &[f32] {
        let g = golden.values(&format!("g{}.{}", rule.step, self.tensor));
        adamw(&mut self.p, &g, &mut self.m, &mut self.v, rule);
        &self.p
    }
}

#[test]
fn matrices_decay_vectors_do_not_and_embeddings_learn_at_their_own_rate() {
    let _alone = ALONE.lock().unwrap();
    let golden = Golden::load();
    let rule = golden.rule(1);
    let config = AdamwConfig {
        beta1: rule.beta1,
        beta2: rule.beta2,
        eps: rule.eps,
        weight_decay: rule.weight_decay,
        embedding_lr_ratio: 3.0,
        ..common::adamw()
    };
    let store = store(&golden);
    let mut optimizer = lehr_train::AdamW::new(&config, rule.lr, &store).unwrap();
    let (mut vector, mut embedding) = (Alone::new(&golden, 1), Alone::new(&golden, 0));
    for step in 1..=10 {
        for (param, tensor) in store.params().iter().zip([0, 1, 0]) {
            let g = golden.values(&format!("g{step}.{tensor}"));
            let g = Tensor::from_slice(&g, param.shape()).unwrap();
            // The gradient of Σ p · g is g.
            param.tensor().mul(&g).unwrap().sum().unwrap().backward().unwrap();
        }
        let update = Update { number: step, lr: rule.lr, grad_scale: 1.0 };
        let squared_norm = SquaredGradNorm::known(0.0);
        optimizer
            .step(&store, update, Clip { squared_norm: &squared_norm, max_norm: 0.0 })
            .unwrap();
        store.clear_grads();
        let found: Vec<_> = store.params().iter().map(|p| p.tensor().to_vec()).collect();
        let error = error(&found[0], &golden.values(&format!("p{step}.0")));
        assert!(error <= 4.0, "the matrix is off by {error} ulp at step {step}");
        let rule = golden.rule(step);
        let want = vector.step(&golden, AdamW { weight_decay: 0.0, ..rule });
        assert_eq!(found[1], want, "the vector at step {step}");
        let want = embedding.step(&golden, AdamW { lr: 3.0 * rule.lr, ..rule });
        assert_eq!(found[2], want, "the embedding at step {step}");
    }
}
