//! Averages of weights: equal to a plain reference, exact after an interruption at any step, and
//! what is evaluated, sampled from and saved.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{Watch, llama, prepared, recipe, run_in_memory, run_watched};
use lehr_model::io::Checkpoint;
use lehr_model::{DTypeChoice, DeviceChoice};
use lehr_tensor::cuda;
use lehr_train::recipe::{AverageConfig, ObjectiveKind};
use lehr_train::{Recipe, Task, evaluate, read_metrics};

const EMA: AverageConfig = AverageConfig::Ema { decay: 0.8, start_step: 2 };
/// The weights after steps 2, 4 and 6.
const TAIL: AverageConfig = AverageConfig::Tail { steps: 5, every_steps: 2 };

type Weights = BTreeMap<String, Vec<f32>>;

fn weights(task: &Task) -> Weights {
    let params = task.objective.model().params().params().iter();
    params.map(|p| (p.name().to_owned(), p.to_host().unwrap().to_vec())).collect()
}

fn saved(recipe: &Recipe, step: u64, file: &str) -> Option<Weights> {
    let path = recipe.dir().join(format!("checkpoints/step-{step}")).join(file);
    let found = path.is_file().then(|| Checkpoint::open(&path).unwrap())?;
    let (task, mut weights) = (prepared(recipe), Weights::new());
    for p in task.objective.model().params().params() {
        let value = found.tensor(p.name(), p.shape()).unwrap();
        weights.insert(p.name().to_owned(), value.to_vec());
    }
    Some(weights)
}

/// A recipe in its own directory that keeps a checkpoint of every step.
fn averaged(dir: &Path, name: &str, average: AverageConfig) -> Recipe {
    let mut recipe = recipe(dir, llama(32), ObjectiveKind::NextToken);
    recipe.run.dir = dir.join(name).display().to_string();
    recipe.average = average;
    (recipe.checkpoint.every_steps, recipe.checkpoint.keep) = (1, 10);
    recipe.eval.every_steps = 1;
    recipe
}

/// The average in f64, straight from its definition.
fn reference(plain: &[Weights], config: AverageConfig) -> Weights {
    let name_by_name = |f: &dyn Fn(&[f64]) -> f64| -> Weights {
        let one = |name: &String| {
            let n = plain[0][name].len();
            let value = |i: usize| {
                let values: Vec<f64> = plain.iter().map(|w| f64::from(w[name][i])).collect();
                f(&values) as f32
            };
            (name.clone(), (0..n).map(value).collect())
        };
        plain[0].keys().map(one).collect()
    };
    match config {
        AverageConfig::Ema { decay, .. } => {
            let decay = f64::from(decay);
            name_by_name(&|values| {
                let next = |mean: f64, w: &f64| decay * mean + (1.0 - decay) * w;
                values[1..].iter().fold(values[0], next)
            })
        }
        _ => name_by_name(&|values| values.iter().sum::<f64>() / values.len() as f64),
    }
}

#[track_caller]
fn close(found: &Weights, want: &Weights) {
    assert_eq!(found.len(), want.len());
    for (name, want) in want {
        for (found, want) in found[name].iter().zip(want) {
            assert!((found - want).abs() <= 1e-6 * want.abs().max(0.1), "{name}: {found} {want}");
        }
    }
}

#[test]
fn averages_equal_a_plain_reference_and_training_does_not_depend_on_them() {
    let scratch = tempfile::tempdir().unwrap();
    let plain = averaged(scratch.path(), "plain", AverageConfig::None);
    let (_, undisturbed) = run_watched(&plain, Watch::default());
    let of_step = |step| saved(&plain, step, "model.safetensors").unwrap();
    for (name, config, counted) in [
        ("ema", EMA, vec![2, 3, 4, 5, 6]),
        ("tail", TAIL, vec![2, 4, 6]),
        ("end", AverageConfig::Tail { steps: 1, every_steps: 1 }, vec![6]),
    ] {
        let recipe = averaged(scratch.path(), name, config);
        let (task, watch) = run_watched(&recipe, Watch::default());
        assert_eq!(watch.losses(), undisturbed.losses(), "{name}");
        for step in 1..=6 {
            let model = saved(&recipe, step, "model.safetensors").unwrap();
            let last = saved(&recipe, step, "last_weights.safetensors");
            let seen: Vec<_> = counted.iter().filter(|s| **s <= step).copied().collect();
            if seen.is_empty() {
                assert_eq!((model, last), (of_step(step), None), "{name}, step {step}");
                continue;
            }
            assert_eq!(last.unwrap(), of_step(step), "{name}, step {step}");
            close(&model, &reference(&seen.into_iter().map(of_step).collect::<Vec<_>>(), config));
        }
        // The caller gets the averaged model, and the last evaluation is of it.
        assert_eq!(weights(&task), saved(&recipe, 6, "model.safetensors").unwrap());
        let again = evaluate(task.objective.as_ref(), task.validation.as_ref(), 2).unwrap();
        let written = |recipe: &Recipe| {
            let metrics = read_metrics(&recipe.dir().join("metrics.jsonl")).unwrap();
            metrics[5].eval.as_ref().unwrap().loss
        };
        let off = |found: f64, want: f64| (found / want - 1.0).abs();
        assert!(off(written(&recipe), again.loss) < 1e-12, "{name}");
        // The mean of one is that one.
        assert_eq!(off(written(&recipe), written(&plain)) < 1e-12, name == "end", "{name}");
    }
}

/// All files of a checkpoint that say something of weights.
fn bytes(recipe: &Recipe, step: u64) -> Vec<Vec<u8>> {
    let dir = recipe.dir().join(format!("checkpoints/step-{step}"));
    ["model.safetensors", "last_weights.safetensors", "optimizer.safetensors"]
        .map(|name| std::fs::read(dir.join(name)).unwrap())
        .to_vec()
}

#[test]
fn a_run_with_an_average_resumes_exactly() {
    let scratch = tempfile::tempdir().unwrap();
    for (name, config) in [("ema", EMA), ("tail", TAIL)] {
        let whole = averaged(scratch.path(), name, config);
        let (_, undisturbed) = run_watched(&whole, Watch::default());
        for k in 1..6 {
            let parts = averaged(scratch.path(), &format!("{name}-{k}"), config);
            run_watched(&parts, Watch { stop_after: Some(k), ..Watch::default() });
            let (_, rest) = run_watched(&parts, Watch::default());
            assert_eq!(rest.started, Some(k));
            assert_eq!(rest.losses(), undisturbed.losses()[k as usize..], "{name} from step {k}");
            assert!(bytes(&parts, 6) == bytes(&whole, 6), "{name} from step {k}");
        }
    }
}

#[test]
fn a_checkpoint_without_the_last_weights_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let recipe = averaged(scratch.path(), "run", EMA);
    run_watched(&recipe, Watch { stop_after: Some(3), ..Watch::default() });
    let file = "checkpoints/step-3/last_weights.safetensors";
    std::fs::remove_file(recipe.dir().join(file)).unwrap();
    // The manifest names the file, so the checkpoint counts as damaged.
    let (_, watch) = run_watched(&recipe, Watch::default());
    assert_eq!(watch.started, Some(2));
    assert!(watch.skipped[0].1.contains("last_weights.safetensors"), "{:?}", watch.skipped);
}

#[test]
fn a_gpu_averages_as_the_cpu_does() {
    cuda::use_emulator();
    let scratch = tempfile::tempdir().unwrap();
    let cpu = averaged(scratch.path(), "cpu", EMA);
    let (task, _) = run_in_memory(&cpu);
    let mut gpu = averaged(scratch.path(), "gpu", EMA);
    (gpu.run.device, gpu.run.dtype) = (DeviceChoice::Cuda(0), DTypeChoice::F32);
    let (on_gpu, _) = run_in_memory(&gpu);
    for (name, want) in weights(&task) {
        let found = &weights(&on_gpu)[&name];
        let squares = |values: &[f32]| values.iter().map(|x| x * x).sum::<f32>();
        let off: Vec<f32> = want.iter().zip(found).map(|(a, b)| a - b).collect();
        let off = (squares(&off) / squares(&want)).sqrt();
        assert!(off < 1e-2, "{name} is off by {off}");
    }
    gpu.run.dtype = DTypeChoice::Bf16;
    let (first, whole) = run_watched(&gpu, Watch::default());
    let mut parts = averaged(scratch.path(), "parts", EMA);
    (parts.run.device, parts.run.dtype) = (gpu.run.device, gpu.run.dtype);
    run_watched(&parts, Watch { stop_after: Some(3), ..Watch::default() });
    let (second, rest) = run_watched(&parts, Watch::default());
    assert_eq!(rest.losses(), whole.losses()[3..]);
    assert_eq!(weights(&first), weights(&second));
}

#[test]
fn impossible_averages_are_refused_by_name() {
    let scratch = tempfile::tempdir().unwrap();
    let plain = averaged(scratch.path(), "plain", AverageConfig::None);
    let refusal = |sets: &[&str]| {
        let sets: Vec<_> = sets.iter().map(|set| (*set).to_owned()).collect();
        plain.with_overrides(&sets).unwrap_err().to_string()
    };
    for (sets, part) in [
        (vec!["average.kind=ema", "average.decay=1.0", "average.start_step=1"], "average.decay"),
        (vec!["average.kind=ema", "average.decay=0.5", "average.start_step=7"], "start_step is 7"),
        (vec!["average.kind=ema", "average.decay=0.5"], "missing field `start_step`"),
        (vec!["average.kind=tail", "average.steps=9", "average.every_steps=1"], "average.steps"),
        (vec!["average.kind=tail", "average.steps=2", "average.every_steps=3"], "every_steps is 3"),
        (vec!["average.decay=0.9"], "unknown field `decay` in [average] with kind = \"none\""),
        (vec!["average.kind=tail", "average.decay=0.9"], "unknown field `decay`"),
    ] {
        let found = refusal(&sets);
        assert!(found.contains(part), "{sets:?}: {found}");
    }
    // Recipes of earlier versions have no average.
    let old = plain.to_toml().replace("[average]\nkind = \"none\"\n", "");
    assert_eq!(Recipe::parse(&old, "old.toml", &[]).unwrap(), plain);
}
