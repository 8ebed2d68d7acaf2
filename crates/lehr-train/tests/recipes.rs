//! The recipes that come with the program.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use lehr_train::recipe::{LehrModel, ModelConfig, NanochatModel, TokenizerConfig};
use lehr_train::{Quiet, Recipe, RunDir, prepare, run};

fn shipped() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let files = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let is_toml = |path: &PathBuf| path.extension().is_some_and(|e| e == "toml");
    let mut files: Vec<_> = files.map(|e| e.unwrap().path()).filter(is_toml).collect();
    assert!(files.len() >= 4, "only {files:?}");
    files.sort();
    files
}

#[test]
fn every_shipped_recipe_is_read_written_and_read_as_the_same() {
    for path in shipped() {
        let recipe = Recipe::load(&path, &[]).unwrap_or_else(|e| panic!("{e}"));
        let again = Recipe::parse(&recipe.to_toml(), "written", &[]).unwrap();
        assert_eq!(again, recipe, "{}", path.display());
        let shorter = recipe.with_overrides(&["train.steps=100000".to_owned()]).unwrap();
        assert_eq!(shorter.train.steps, 100_000, "{}", path.display());
    }
}

#[test]
fn no_two_shipped_recipes_share_a_run_directory() {
    let dirs: Vec<_> = shipped().iter().map(|p| Recipe::load(p, &[]).unwrap().run.dir).collect();
    let mut unique = dirs.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), dirs.len(), "{dirs:?}");
}

/// The same run in `dir`, small enough for a test: two steps of a narrow model on the bundled data.
fn tiny(mut recipe: Recipe, dir: &Path) -> Recipe {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let place = |path: &str| match path.is_empty() {
        true => String::new(),
        false => data.join(path).display().to_string(),
    };
    recipe.data.path = match recipe.data.path.as_str() {
        // The whole of it takes long to tokenise.
        "data/pretrain" => place("data/pretrain/en_austen.txt"),
        path => place(path),
    };
    recipe.data.validation_path = place(&recipe.data.validation_path);
    let in_dir = |path: &str| dir.join(path).display().to_string();
    recipe.run.dir = in_dir(&recipe.run.dir);
    match &mut recipe.model {
        ModelConfig::Load { path } => *path = in_dir(path),
        ModelConfig::Llama { n_layers, hidden_size, n_heads, mlp_size, .. }
        | ModelConfig::Nanochat(NanochatModel {
            n_layers, hidden_size, n_heads, mlp_size, ..
        })
        | ModelConfig::Lehr(LehrModel { n_layers, hidden_size, n_heads, mlp_size, .. }) => {
            (*n_layers, *hidden_size, *mlp_size) = (1, 8 * *n_heads, 64);
        }
        ModelConfig::Gpt2 { n_layers, hidden_size, .. } => (*n_layers, *hidden_size) = (1, 48),
    }
    if let TokenizerConfig::Train { vocab_size, .. } = &mut recipe.tokenizer {
        *vocab_size = 300;
    }
    recipe.train.steps = 2;
    recipe.train.grad_accumulation = recipe.train.grad_accumulation.min(2);
    recipe.train.batch_size = recipe.train.batch_size.min(4);
    recipe.eval.batches_max = 1;
    recipe.sample.max_tokens = recipe.sample.max_tokens.min(4);
    let sets = ["schedule.kind=cosine", "schedule.warmup_steps=1", "schedule.min_ratio=0.0"];
    recipe.with_overrides(&sets.map(str::to_owned)).unwrap()
}

/// Those that fine-tune start from what `tiny-llama` has made, which comes first.
#[test]
fn every_shipped_recipe_can_be_run_at_a_tiny_size() {
    let scratch = tempfile::tempdir().unwrap();
    let mut recipes: Vec<_> = shipped().iter().map(|p| Recipe::load(p, &[]).unwrap()).collect();
    recipes.sort_by_key(|recipe| matches!(recipe.model, ModelConfig::Load { .. }));
    for recipe in recipes {
        let recipe = tiny(recipe, scratch.path());
        let dir = RunDir::open(&recipe).unwrap();
        let mut task = prepare(&recipe, &dir.cache(), &mut |_| ()).unwrap();
        let never = AtomicBool::new(false);
        let outcome = run(&recipe, &mut task, Some(&dir), &mut Quiet, &never);
        let outcome = outcome.unwrap_or_else(|e| panic!("{}: {e}", recipe.run.dir));
        assert!(outcome.finished, "{}", recipe.run.dir);
        assert!(outcome.evaluation.unwrap().loss.is_finite(), "{}", recipe.run.dir);
    }
}
