//! Muon in whole runs, and the groups of AdamW beside it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;
use std::sync::Mutex;

use common::{
    Watch, checkpoint_bytes, gpt2, llama, prepared, recipe, run_in_memory, run_watched, weights,
};
use lehr_model::{DTypeChoice, DeviceChoice};
use lehr_tensor::inplace::{Clip, SquaredGradNorm};
use lehr_tensor::{Init, ParamBuilder, ParamStore, Role, Shape, Source, Tensor, cuda, threads};
use lehr_train::recipe::{
    AdamwConfig, GroupChange, ModelConfig, MuonConfig, ObjectiveKind, OptimizerConfig,
};
use lehr_train::{AdamW, Optimizer, Recipe, Stepper, Update, optimizer_state_bytes};
use safetensors::SafeTensors;

/// The number of threads is that of the whole process.
static ALONE: Mutex<()> = Mutex::new(());

/// A run with Muon, its momentum warming up and cooling down.
fn muon_recipe(dir: &Path, model: ModelConfig, change: impl FnOnce(&mut MuonConfig)) -> Recipe {
    let mut recipe = recipe(dir, model, ObjectiveKind::NextToken);
    recipe.optimizer = OptimizerConfig::muon(0.01).with_muon(|muon| {
        (muon.momentum_warmup_steps, muon.momentum_cooldown_steps, muon.momentum_end) = (3, 2, 0.9);
        change(muon);
    });
    recipe.optimizer.clip_norm = 1.0;
    recipe
}

fn named(recipe: &Recipe, name: &str) -> Recipe {
    let mut recipe = recipe.clone();
    recipe.run.dir = recipe.dir().with_file_name(name).display().to_string();
    recipe
}

/// A run that stops after each step and continues with another number of threads has the bits of
/// one that does not stop.
fn check_resume(model: ModelConfig, every: u64) {
    let _alone = ALONE.lock().unwrap();
    let before = threads::n_threads();
    let scratch = tempfile::tempdir().unwrap();
    let recipe = muon_recipe(scratch.path(), model, |muon| muon.every = every);
    let whole = named(&recipe, "whole");
    threads::set_n_threads(2);
    run_watched(&whole, Watch::default());
    let steps = recipe.train.steps;
    for k in [1, 3, 4] {
        let parts = named(&recipe, &format!("stopped-{k}"));
        threads::set_n_threads(1);
        run_watched(&parts, Watch { stop_after: Some(k), ..Watch::default() });
        threads::set_n_threads(3);
        let (_, second) = run_watched(&parts, Watch::default());
        assert_eq!((second.started, second.skipped.len()), (Some(k), 0));
        assert!(
            checkpoint_bytes(&parts, steps) == checkpoint_bytes(&whole, steps),
            "weights or state differ after a stop at step {k}"
        );
    }
    threads::set_n_threads(before);
}

#[test]
fn a_llama_with_muon_resumes_with_all_bits_and_other_threads() {
    check_resume(llama(32), 1);
}

#[test]
fn a_gpt2_with_muon_every_second_step_resumes_with_all_bits() {
    check_resume(gpt2(32), 2);
}

#[test]
fn updates_inside_of_backward_have_the_bits_of_updates_after_it() {
    let scratch = tempfile::tempdir().unwrap();
    let mut after = muon_recipe(scratch.path(), gpt2(32), |_| ());
    after.optimizer.clip_norm = 0.0;
    let mut inside = after.clone();
    inside.optimizer.in_backward = true;
    let [after, inside] = [after, inside].map(|recipe| weights(&run_in_memory(&recipe).0));
    assert!(after == inside);
}

#[test]
fn frozen_matrices_keep_their_bits_and_have_no_state() {
    let scratch = tempfile::tempdir().unwrap();
    let mut recipe = muon_recipe(scratch.path(), llama(32), |_| ());
    recipe.train.freeze = vec!["*.layers.0.*".to_owned(), "*norm*".to_owned()];
    let fresh = weights(&prepared(&recipe));
    let (task, _) = run_in_memory(&recipe);
    let params = task.objective.model().params();
    let mut n_frozen = 0;
    for ((name, before), (_, after)) in fresh.iter().zip(&weights(&task)) {
        let is_trained = params.get(name).unwrap().is_trainable();
        assert_eq!(before != after, is_trained, "{name}");
        n_frozen += usize::from(!is_trained);
    }
    assert!(n_frozen > 7);
    let stepper = Stepper::new(&recipe.optimizer, task.objective.model(), false).unwrap();
    let state = stepper.optimizer.state();
    let is_frozen = |name: &str| {
        params.get(name.split_once('.').unwrap().1).is_none_or(|param| !param.is_trainable())
    };
    assert!(state.iter().all(|(name, _)| !is_frozen(name)));
    assert_eq!(state.len(), 2 * params.trainable().count());
}

#[test]
fn the_memory_of_the_state_is_what_is_said_of_it() {
    for model in [llama(32), gpt2(32)] {
        let scratch = tempfile::tempdir().unwrap();
        let recipe = muon_recipe(scratch.path(), model, |_| ());
        let task = prepared(&recipe);
        let model = task.objective.model();
        let mut bytes = Vec::new();
        for config in [recipe.optimizer, Recipe::base().optimizer] {
            let stepper = Stepper::new(&config, model, false).unwrap();
            let state = stepper.optimizer.state();
            let held: usize = state.iter().map(|(_, t)| 4 * t.shape().n_elements()).sum();
            assert_eq!(optimizer_state_bytes(&config, model.params()), held);
            bytes.push(held);
        }
        assert!(bytes[0] < bytes[1]);
    }
}

/// The largest relative difference.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs() / b).fold(0.0, f64::max)
}

#[test]
fn muon_learns_on_the_gpu_as_on_the_cpu() {
    cuda::use_emulator();
    for model in [llama(32), gpt2(32)] {
        let scratch = tempfile::tempdir().unwrap();
        let recipe = muon_recipe(scratch.path(), model, |_| ());
        let on = |device, dtype, cuda_graph| {
            let mut recipe = recipe.clone();
            (recipe.run.device, recipe.run.dtype) = (device, dtype);
            recipe.train.cuda_graph = cuda_graph;
            run_in_memory(&recipe).1.losses()
        };
        let cpu = on(DeviceChoice::Cpu, DTypeChoice::F32, false);
        assert!(cpu[5] < cpu[0] - 0.5, "it does not learn: {cpu:?}");
        let gpu = DeviceChoice::Cuda(0);
        let off = distance(&on(gpu, DTypeChoice::F32, false), &cpu);
        assert!(off < 5e-4, "f32 on the GPU is off by {off:.1e}");
        let bf16 = on(gpu, DTypeChoice::Bf16, false);
        let off = distance(&bf16, &cpu);
        assert!(off < 2e-2, "bf16 on the GPU is off by {off:.1e}");
        assert_eq!(bf16, on(gpu, DTypeChoice::Bf16, true), "a recorded step changes bits");
        let off = distance(&on(gpu, DTypeChoice::F16, false), &cpu);
        assert!(off < 2e-2, "f16 on the GPU is off by {off:.1e}");
    }
}

struct Golden {
    bytes: Vec<u8>,
    settings: serde_json::Value,
}

impl Golden {
    fn load() -> Self {
        let golden = "../lehr-tensor/tests/golden/adamw_groups.safetensors";
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(golden);
        let bytes = std::fs::read(&path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let text = &header.metadata().as_ref().unwrap()["settings"];
        Self { settings: serde_json::from_str(text).unwrap(), bytes }
    }

    fn tensor(&self, name: &str) -> Tensor {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = file.tensor(name).unwrap();
        let values: Vec<f32> =
            view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Tensor::from_slice(&values, view.shape()).unwrap()
    }

    fn group(&self, name: &str) -> GroupChange {
        let number = |key: &str| Some(self.settings["groups"][name][key].as_f64().unwrap() as f32);
        GroupChange {
            lr: number("lr"),
            beta1: number("beta1"),
            beta2: number("beta2"),
            weight_decay: number("weight_decay"),
        }
    }
}

/// The groups of the golden: its name, the name here, the role.
const GROUPS: [(&str, Role); 4] = [
    ("matrices", Role::Attention),
    ("embeddings", Role::TokenEmbedding),
    ("head", Role::Head),
    ("scalars", Role::Norm),
];

#[test]
fn ten_steps_of_cautious_adamw_in_groups_equal_pytorch() {
    let golden = Golden::load();
    let peak = 0.02;
    let config = AdamwConfig {
        eps: golden.settings["eps"].as_f64().unwrap() as f32,
        embedding_lr_ratio: 1.0,
        cautious: true,
        matrices: golden.group("matrices"),
        embeddings: golden.group("embeddings"),
        head: golden.group("head"),
        others: golden.group("scalars"),
        ..common::adamw()
    };
    for on_gpu in [false, true] {
        let load = |name: &str, _: Shape| Ok(Some(golden.tensor(&format!("{name}.p0"))));
        let source = Source::Load { load: &load, stored: None, seed: 0 };
        let mut store = ParamStore::default();
        let mut builder = ParamBuilder::new(&mut store, &source);
        for (name, role) in GROUPS {
            let shape = golden.tensor(&format!("{name}.p0")).shape();
            builder.param(name, role, shape, Init::Constant(0.0)).unwrap();
        }
        if on_gpu {
            cuda::use_emulator();
            store.to_device(lehr_tensor::Device::Cuda(0), lehr_tensor::DType::F32).unwrap();
        }
        let mut optimizer = AdamW::new(&config, peak, &store).unwrap();
        for number in 1..=10 {
            for param in store.params() {
                let grad = golden.tensor(&format!("{}.g{number}", param.name()));
                let grad = grad.to_device(param.device()).unwrap();
                param.tensor().mul(&grad).unwrap().sum().unwrap().backward().unwrap();
            }
            let update = Update { number, lr: peak, grad_scale: 1.0 };
            let squared_norm = SquaredGradNorm::known(0.0);
            let clip = Clip { squared_norm: &squared_norm, max_norm: 0.0 };
            optimizer.step(&store, update, clip).unwrap();
            store.clear_grads();
            for param in store.params() {
                let want = golden.tensor(&format!("{}.p{number}", param.name()));
                let found = param.to_host().unwrap();
                for (found, want) in found.data().iter().zip(want.data()) {
                    let off = (found - want).abs() / want.abs().max(1.0) / f32::EPSILON;
                    let name = param.name();
                    assert!(off <= 8.0, "{name}: {off} ulp at step {number}, GPU: {on_gpu}");
                }
            }
        }
    }
}
