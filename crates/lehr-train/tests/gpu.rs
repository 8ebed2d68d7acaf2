//! Training on a GPU: the losses of the CPU, the same bits twice, and checkpoints that move between
//! the two. The GPU is emulated, unless `LEHR_CUDA=driver`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::atomic::AtomicBool;

use common::{Watch, adapting, gpt2, llama, prepared, recipe, run_in_memory, run_watched};
use lehr_model::{ActivationCheckpointing, DTypeChoice, DeviceChoice};
use lehr_tensor::cuda;
use lehr_train::checkpoint::Contents;
use lehr_train::recipe::{ModelConfig, ObjectiveKind};
use lehr_train::{LossScale, Outcome, Recipe, RunDir, Stepper, TrainState, checkpoint, run};

const GPU: DeviceChoice = DeviceChoice::Cuda(0);

fn on(recipe: &Recipe, device: DeviceChoice, dtype: DTypeChoice) -> Recipe {
    let mut recipe = recipe.clone();
    (recipe.run.device, recipe.run.dtype) = (device, dtype);
    recipe
}

fn losses(recipe: &Recipe) -> Vec<f64> {
    run_in_memory(recipe).1.losses()
}

/// The largest relative difference.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs() / b).fold(0.0, f64::max)
}

fn check(model: ModelConfig, objective: ObjectiveKind) {
    cuda::use_emulator();
    let scratch = tempfile::tempdir().unwrap();
    let mut recipe = recipe(scratch.path(), model, objective);
    let train = &mut recipe.train;
    (train.steps, train.grad_accumulation, train.batch_size) = (12, 2, 2);
    let cpu = losses(&recipe);
    let f32 = losses(&on(&recipe, GPU, DTypeChoice::F32));
    let off = distance(&f32, &cpu);
    assert!(off < 2e-4, "{objective:?}: f32 on the GPU is off by {off:.1e}: {f32:?}, {cpu:?}");
    let bf16 = on(&recipe, GPU, DTypeChoice::Bf16);
    let (first, again) = (losses(&bf16), losses(&bf16));
    let off = distance(&first, &cpu);
    // Twelve steps in bf16 (8 bits of precision, 0.4 % per rounding) move losses by this much. The
    // bound sees a wrong scale or a missing layer, not a wrong kernel: the tests of single ops do.
    assert!(off < 2e-2, "{objective:?}: bf16 on the GPU is off by {off:.1e}: {first:?}, {cpu:?}");
    let bits = |v: &[f64]| v.iter().map(|l| l.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&first), bits(&again), "{objective:?}: two runs differ");
    for checkpointing in [ActivationCheckpointing::Recompute, ActivationCheckpointing::Offload] {
        let mut again = bf16.clone();
        again.train.activation_checkpointing = checkpointing;
        let found = losses(&again);
        assert_eq!(bits(&first), bits(&found), "{objective:?}: {checkpointing:?} changes bits");
    }
    let mut graph = bf16;
    graph.train.cuda_graph = true;
    assert_eq!(bits(&first), bits(&losses(&graph)), "{objective:?}: a recorded step changes bits");
    let f16 = losses(&on(&recipe, GPU, DTypeChoice::F16));
    let off = distance(&f16, &cpu);
    // f16 has 3 bits more than bf16.
    assert!(off < 5e-3, "{objective:?}: f16 on the GPU is off by {off:.1e}: {f16:?}, {cpu:?}");
}

#[test]
fn a_llama_learns_on_the_gpu_as_on_the_cpu() {
    check(llama(32), ObjectiveKind::NextToken);
}

/// The model and the optimiser of fitted recipes: rows of tables that a step does not use are left
/// alone on both devices.
#[test]
fn a_fitted_model_learns_with_muon_on_the_gpu_as_on_the_cpu() {
    cuda::use_emulator();
    let scratch = tempfile::tempdir().unwrap();
    let model = lehr_train::model_of_depth(1, 64);
    let mut recipe = recipe(scratch.path(), model, ObjectiveKind::NextToken);
    recipe.optimizer = lehr_train::muon_for_width(64);
    (recipe.train.steps, recipe.train.batch_size) = (6, 2);
    let cpu = losses(&recipe);
    for (dtype, most) in [(DTypeChoice::F32, 2e-4), (DTypeChoice::Bf16, 2e-2)] {
        let gpu = losses(&on(&recipe, GPU, dtype));
        let off = distance(&gpu, &cpu);
        assert!(off < most, "{dtype} on the GPU is off by {off:.1e}: {gpu:?}, {cpu:?}");
    }
}

#[test]
fn an_adapter_learns_on_the_gpu_as_on_the_cpu() {
    cuda::use_emulator();
    let scratch = tempfile::tempdir().unwrap();
    let (_, tuned) = adapting(scratch.path());
    for (kind, weights) in [("lora", "auto"), ("lora", "int8"), ("dora", "auto"), ("dora", "int8")]
    {
        let sets = [format!("adapter.kind={kind}"), format!("adapter.weights={weights}")];
        let tuned = tuned.with_overrides(&sets).unwrap();
        let cpu = losses(&tuned);
        for (dtype, most) in [(DTypeChoice::F32, 5e-4), (DTypeChoice::Bf16, 2e-2)] {
            let gpu = losses(&on(&tuned, GPU, dtype));
            let off = distance(&gpu, &cpu);
            assert!(
                off < most,
                "{kind}, {weights} in {dtype} is off by {off:.1e}: {gpu:?}, {cpu:?}"
            );
        }
    }
}

#[test]
fn a_gpt2_learns_conversations_on_the_gpu_as_on_the_cpu() {
    check(gpt2(32), ObjectiveKind::Chat);
}

#[test]
fn a_classifier_learns_on_the_gpu_as_on_the_cpu() {
    check(llama(32), ObjectiveKind::CLASSIFY);
}

#[test]
fn words_are_tagged_on_the_gpu_as_on_the_cpu() {
    check(llama(32), ObjectiveKind::Tag);
}

/// Products in 8 bits change losses by less than 0.5 %; two runs are the same. The matrices are
/// narrow here, while a run of a recipe takes wide ones alone.
#[test]
fn products_in_fp8_learn_as_those_in_bf16() {
    cuda::use_emulator();
    if cuda::device_info(0).unwrap().capability < cuda::FP8_CAPABILITY {
        return;
    }
    for (model, objective) in
        [(llama(32), ObjectiveKind::NextToken), (gpt2(32), ObjectiveKind::NextToken)]
    {
        let scratch = tempfile::tempdir().unwrap();
        let mut recipe = recipe(scratch.path(), model, objective);
        let train = &mut recipe.train;
        (train.steps, train.grad_accumulation, train.batch_size) = (12, 2, 2);
        let recipe = on(&recipe, GPU, DTypeChoice::Bf16);
        let bf16 = losses(&recipe);
        let fp8 = |checkpointing| {
            let mut recipe = recipe.clone();
            recipe.train.activation_checkpointing = checkpointing;
            let (mut task, mut watch) = (prepared(&recipe), Watch::default());
            // All matrices of blocks; no table, no head.
            let params = task.objective.model().params().params().iter();
            let in_block = |name: &str| name.contains(".layers.") || name.contains(".h.");
            let n = params.filter(|p| p.shape().len() == 2 && in_block(p.name())).count();
            assert_eq!(task.objective.model().use_fp8(16), n);
            let stop = std::sync::Arc::clone(&watch.stop);
            lehr_train::run(&recipe, &mut task, None, &mut watch, &stop).unwrap();
            watch.losses()
        };
        let keep = ActivationCheckpointing::None;
        let (first, again) = (fp8(keep), fp8(keep));
        let off = distance(&first, &bf16);
        assert!((1e-5..5e-3).contains(&off), "fp8 is off by {off:.1e}: {first:?}, {bf16:?}");
        assert_eq!(first, again);
        assert_eq!(first, fp8(ActivationCheckpointing::Recompute));
    }
}

#[test]
fn a_recipe_with_fp8_runs_on_the_gpu_and_is_refused_elsewhere() {
    cuda::use_emulator();
    let scratch = tempfile::tempdir().unwrap();
    let mut recipe = recipe(scratch.path(), llama(32), ObjectiveKind::NextToken);
    recipe.run.fp8 = true;
    let text = recipe.to_toml();
    let refused = Recipe::parse(&text, "recipe", &[]).unwrap_err().to_string();
    assert!(refused.contains("run.fp8 is true, expected false"), "{refused}");
    let recipe = on(&recipe, GPU, DTypeChoice::Bf16);
    let cache = scratch.path().join("cache");
    let mut notes = Vec::new();
    lehr_train::prepare(&recipe, &cache, &mut |note| notes.push(note.to_owned())).unwrap();
    // Its matrices are narrow.
    assert!(notes.iter().any(|note| note.contains("fp8 is not used")), "{notes:?}");
}

/// Returns the losses after step `from` of a run that begins on `first`, stops there and continues
/// on `second`.
fn continued(recipe: &Recipe, first: DeviceChoice, second: DeviceChoice, from: u64) -> Vec<f64> {
    let begin = Watch { stop_after: Some(from), ..Watch::default() };
    run_watched(&on(recipe, first, DTypeChoice::Auto), begin);
    let (_, watch) = run_watched(&on(recipe, second, DTypeChoice::F32), Watch::default());
    assert_eq!(watch.started, Some(from));
    watch.losses()
}

#[test]
fn a_run_resumes_exactly_and_moves_between_devices() {
    cuda::use_emulator();
    let scratch = tempfile::tempdir().unwrap();
    let recipe = recipe(scratch.path(), llama(32), ObjectiveKind::NextToken);
    let within = |name: &str| {
        let mut recipe = recipe.clone();
        recipe.run.dir = scratch.path().join(name).display().to_string();
        recipe
    };
    let whole = on(&within("whole"), GPU, DTypeChoice::Bf16);
    let (_, undisturbed) = run_watched(&whole, Watch::default());
    let parts = on(&within("parts"), GPU, DTypeChoice::Bf16);
    run_watched(&parts, Watch { stop_after: Some(3), ..Watch::default() });
    let (_, rest) = run_watched(&parts, Watch::default());
    assert_eq!(rest.losses(), undisturbed.losses()[3..], "a resumed run has other losses");

    let cpu = losses(&on(&recipe, DeviceChoice::Cpu, DTypeChoice::F32));
    let to_gpu = continued(&within("to-gpu"), DeviceChoice::Cpu, GPU, 3);
    let to_cpu = continued(&within("to-cpu"), GPU, DeviceChoice::Cpu, 3);
    assert!(distance(&to_gpu, &cpu[3..]) < 2e-4, "{to_gpu:?}, {cpu:?}");
    // The first three steps were in bf16.
    assert!(distance(&to_cpu, &cpu[3..]) < 2e-2, "{to_cpu:?}, {cpu:?}");
}

/// A run in f16 that begins with that factor of the loss: how it ends, and its losses.
fn from_factor(recipe: &Recipe, factor: f32) -> (Outcome, Vec<f64>) {
    let (mut task, dir) = (common::prepared(recipe), RunDir::open(recipe).unwrap());
    let state =
        TrainState { loss_scale: Some(LossScale { factor, n_steps: 0 }), ..TrainState::default() };
    let stepper = Stepper::new(&recipe.optimizer, task.objective.model(), false).unwrap();
    let place = dir.checkpoints().join("step-0");
    let (objective, optimizer) = (task.objective.as_ref(), stepper.optimizer.as_ref());
    let contents = Contents { objective, optimizer, state: &state, base: None, last_weights: &[] };
    checkpoint::save_at(&mut checkpoint::Disk, &place, &contents).unwrap();
    let mut watch = Watch::default();
    let never = AtomicBool::new(false);
    let outcome = run(recipe, &mut task, Some(&dir), &mut watch, &never).unwrap();
    assert_eq!(watch.started, Some(0));
    (outcome, watch.losses())
}

#[test]
fn a_step_in_f16_that_overflows_is_made_again() {
    cuda::use_emulator();
    let scratch = tempfile::tempdir().unwrap();
    let mut recipe =
        on(&recipe(scratch.path(), llama(32), ObjectiveKind::NextToken), GPU, DTypeChoice::F16);
    let cpu = losses(&on(&recipe, DeviceChoice::Cpu, DTypeChoice::F32));
    let (outcome, found) = from_factor(&recipe, 2f32.powi(24));
    assert!(outcome.finished);
    let scale = outcome.state.loss_scale.unwrap();
    assert!(scale.factor < 2f32.powi(24) && scale.factor > 1.0, "{scale:?}");
    assert!(distance(&found, &cpu) < 5e-3, "{found:?}, {cpu:?}");
    // What is not finite without a factor either ends the run: no weight was touched.
    recipe.optimizer.lr = 1e30;
    recipe.run.dir = scratch.path().join("diverges").display().to_string();
    let (mut task, dir) = (common::prepared(&recipe), RunDir::open(&recipe).unwrap());
    let never = AtomicBool::new(false);
    let error = run(&recipe, &mut task, Some(&dir), &mut Watch::default(), &never).unwrap_err();
    assert!(error.to_string().contains("step 1: the loss is"), "{error}");
    for param in task.objective.model().params().params() {
        assert!(param.to_host().unwrap().data().iter().all(|x| x.is_finite()), "{}", param.name());
    }
}

#[test]
fn updates_inside_of_backward_are_those_after_it() {
    cuda::use_emulator();
    let scratch = tempfile::tempdir().unwrap();
    let mut after =
        on(&recipe(scratch.path(), llama(32), ObjectiveKind::NextToken), GPU, DTypeChoice::Bf16);
    after.optimizer.clip_norm = 0.0;
    let mut inside = after.clone();
    inside.optimizer.in_backward = true;
    assert_eq!(losses(&after), losses(&inside));
}
