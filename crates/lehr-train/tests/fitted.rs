//! Fitted recipes, kept in `fitted/` as files that leave out the values of the base recipe: a
//! change of the planner that moves a number is seen here.
//!
//! If they are meant to move, `LEHR_BLESS=1 cargo test --release -p lehr-train --test fitted`
//! writes them anew. That run fails by design; look at the difference, then run without.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};

use common::{Watch, gpt2, llama, recipe, run_watched};
use lehr_data::DatasetKind;
use lehr_model::{Config, Model, io};
use lehr_train::recipe::{ModelConfig, ObjectiveKind};
use lehr_train::{Budget, Finetuning, FitData, Fitted, Fixed, Recipe, fit_finetune, fit_pretrain};

/// Relative to the crate, so that the recipes name the same path on every machine.
const DATA: &str = "../../data";

/// The keys of `recipe` that the base recipe has not, or with another value.
fn chosen(recipe: &Recipe) -> String {
    let table = |recipe: &Recipe| toml::from_str::<toml::Table>(&recipe.to_toml()).unwrap();
    let (mut chosen, base) = (table(recipe), table(&Recipe::base()));
    for (section, values) in &mut chosen {
        let base = base[section].as_table().unwrap();
        let same = |key: &str, value: &toml::Value| key != "kind" && base.get(key) == Some(value);
        values.as_table_mut().unwrap().retain(|key, value| !same(key, value));
    }
    chosen.retain(|_, values| !values.as_table().unwrap().is_empty());
    toml::to_string(&chosen).unwrap()
}

/// Compares a fitted recipe with the stored one `name`; `scratch` stands for a folder of its own.
fn check(name: &str, fitted: &Fitted, scratch: Option<&Path>) {
    let text = format!("# {}\n{}", fitted.reasons.join("\n# "), chosen(&fitted.recipe));
    let text = match scratch {
        Some(dir) => text.replace(&dir.display().to_string(), "SCRATCH"),
        None => text,
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fitted/{name}.toml"));
    if std::env::var_os("LEHR_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
        return;
    }
    let want = std::fs::read_to_string(&path);
    let want = want.unwrap_or_else(|e| panic!("reading {}: {e}", path.display()));
    assert_eq!(text, want, "{}", path.display());
}

fn whole(path: &Path) -> FitData<'_> {
    FitData { path, skip_bad: false }
}

fn end() {
    assert!(
        std::env::var_os("LEHR_BLESS").is_none(),
        "written; look at what changed and run without LEHR_BLESS"
    );
}

#[test]
fn pretraining_is_planned_as_stored() {
    for (name, data, seconds, gflops) in [
        ("pretrain_small", "sentiment/en_vader.dev.jsonl", 30.0, 20.0),
        ("pretrain_book", "pretrain/en_austen.txt", 60.0, 100.0),
        ("pretrain_chinese", "pretrain/zh_sanguo.txt", 300.0, 235.0),
        ("pretrain_folder", "pretrain", 3600.0, 235.0),
        ("pretrain_long", "pretrain", 36_000.0, 50_000.0),
    ] {
        let (data, out) = (PathBuf::from(DATA).join(data), Path::new("runs/fitted"));
        let budget = Budget {
            seconds: Some(seconds),
            tokens_per_weight: Budget::TOKENS_PER_WEIGHT,
            gflops,
            measure: None,
        };
        let fixed = Fixed::default();
        let fitted = fit_pretrain(whole(&data), out, 3, budget, &fixed, &mut |_| ()).unwrap();
        check(name, &fitted, None);
    }
    end();
}

/// A run of one step, to be fine-tuned.
fn base(dir: &Path, model: ModelConfig) -> PathBuf {
    std::fs::create_dir_all(dir).unwrap();
    let mut recipe = recipe(dir, model, ObjectiveKind::NextToken);
    recipe.train.steps = 2;
    run_watched(&recipe, Watch::default());
    recipe.dir()
}

/// A BERT with the tokenizer of the run `base`.
fn encoder(dir: &Path, base: &Path) -> PathBuf {
    let golden = Path::new("../lehr-model/tests/golden/bert/config.json");
    let mut json = io::read_json(golden).unwrap();
    json["vocab_size"] = 320.into();
    let model = Model::new(Config::from_json(&json).unwrap(), 1).unwrap();
    std::fs::create_dir_all(dir).unwrap();
    io::write_json(&dir.join("config.json"), &model.config().to_json()).unwrap();
    let file = io::TensorFile::of_params(model.params()).unwrap();
    io::write_parts(&dir.join("model.safetensors"), file.parts()).unwrap();
    let tokenizer = base.join("checkpoints/step-2/tokenizer.json");
    std::fs::copy(tokenizer, dir.join("tokenizer.json")).unwrap();
    dir.to_owned()
}

#[test]
fn fine_tuning_is_planned_as_stored() {
    let scratch = tempfile::tempdir().unwrap();
    let llama = base(&scratch.path().join("llama"), llama(64));
    let gpt2 = base(&scratch.path().join("gpt2"), gpt2(32));
    let bert = encoder(&scratch.path().join("bert"), &llama);
    let chat = "dialog/en_chatterbot.dev.jsonl";
    let labelled = "sentiment/en_vader.dev.jsonl";
    for (name, model, data, kind) in [
        ("finetune_chat", &llama, chat, DatasetKind::Chat),
        ("finetune_text", &gpt2, "pretrain/zh_songci.txt", DatasetKind::Text),
        ("finetune_labelled", &gpt2, labelled, DatasetKind::Labelled),
        ("finetune_encoder", &bert, labelled, DatasetKind::Labelled),
    ] {
        let data = PathBuf::from(DATA).join(data);
        let out = Path::new("runs/fitted");
        let given = Finetuning { model, data: whole(&data), kind, out, seed: 5 };
        let fitted = fit_finetune(given, &Fixed::default(), &mut |_| ()).unwrap();
        check(name, &fitted, Some(scratch.path()));
    }
    end();
}
