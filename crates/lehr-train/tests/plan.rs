//! Fitted recipes around settings that are fixed: what depends on them is fitted to them, or the
//! plan says that it cannot be.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};

use common::{Watch, llama, recipe, run_watched};
use lehr_data::DatasetKind;
use lehr_tensor::Philox;
use lehr_train::recipe::{
    DecayShape, LehrModel, ModelConfig, NanochatModel, ObjectiveKind, OptimizerRule, ScheduleConfig,
};
use lehr_train::{
    Budget, Finetuning, FitData, Fitted, Fixed, Recipe, fit_finetune, fit_pretrain, prepare,
};

const DATA: &str = "../../data/pretrain/en_austen.txt";
const SECONDS: f64 = 180.0;
const BUDGET: Budget = Budget {
    seconds: Some(SECONDS),
    tokens_per_weight: Budget::TOKENS_PER_WEIGHT,
    gflops: 100.0,
    measure: None,
};
/// The share of the machine's rate that a plan counts on.
const EFFICIENCY: f64 = 0.6;

fn fixed(sets: &[&str]) -> Fixed {
    Fixed::new(&sets.iter().map(|set| (*set).to_owned()).collect::<Vec<_>>()).unwrap()
}

fn whole(path: &Path) -> FitData<'_> {
    FitData { path, skip_bad: false }
}

fn fit(sets: &[&str]) -> Fitted {
    fit_pretrain(whole(Path::new(DATA)), Path::new("runs/x"), 1, BUDGET, &fixed(sets), &mut |_| ())
        .unwrap()
}

/// Seconds of training by the cost of its matrix products and attention.
fn seconds(recipe: &Recipe) -> f64 {
    let vocab_size = match recipe.tokenizer {
        lehr_train::recipe::TokenizerConfig::Train { vocab_size, .. } => vocab_size,
        _ => panic!("no tokenizer is trained"),
    };
    let (layers, width, block) = match recipe.model {
        ModelConfig::Llama { n_layers, hidden_size: d, n_heads, n_kv_heads, mlp_size, .. } => {
            (n_layers, d, 2 * d * d + 2 * d * (d / n_heads * n_kv_heads) + 3 * d * mlp_size)
        }
        ModelConfig::Gpt2 { n_layers, hidden_size: d, .. } => (n_layers, d, 12 * d * d),
        ModelConfig::Nanochat(NanochatModel {
            n_layers,
            hidden_size: d,
            n_heads,
            n_kv_heads,
            mlp_size,
            ..
        })
        | ModelConfig::Lehr(LehrModel {
            n_layers,
            hidden_size: d,
            n_heads,
            n_kv_heads,
            mlp_size,
            ..
        }) => (n_layers, d, 2 * d * d + 2 * d * (d / n_heads * n_kv_heads) + 2 * d * mlp_size),
        ModelConfig::Load { .. } => panic!("a model is loaded"),
    };
    let train = &recipe.train;
    let attention = layers * width * train.seq_len.saturating_sub(256);
    let per_token = 6.0 * (layers * block + vocab_size * width + attention) as f64;
    let per_step = train.batch_size * train.seq_len * train.grad_accumulation as usize;
    train.steps as f64 * per_step as f64 * per_token / (BUDGET.gflops * 1e9 * EFFICIENCY)
}

/// Checks that the run takes the time of the budget, or that the plan says how long it takes.
fn check_time(sets: &[&str]) {
    let Fitted { recipe, reasons, .. } = fit(sets);
    let ratio = seconds(&recipe) / SECONDS;
    let is_said = reasons.iter().any(|reason| reason.contains("instead of 180 s"));
    assert!(
        is_said || (0.75..1.3).contains(&ratio),
        "{sets:?}: {ratio} times as long\n{reasons:?}"
    );
}

#[test]
fn the_head_of_a_text_that_is_read_several_times_decays() {
    // Steps of 2,048 tokens. Austen has about 0.7 M.
    let decays = |steps: usize| {
        let set = format!("train.steps={steps}");
        let sets = [set.as_str(), "train.batch_size=8", "train.seq_len=256"];
        let OptimizerRule::Muon(muon) = fit(&sets).recipe.optimizer.rule else {
            panic!("fitted recipes have Muon")
        };
        [muon.head.weight_decay, muon.embeddings.weight_decay]
    };
    let usual = decays(200);
    assert_eq!(usual, [0.01, 0.001]);
    let (twice, often) = (decays(700), decays(2000));
    assert!((0.3..1.5).contains(&twice[0]), "{twice:?}");
    assert!((1.0..2.5).contains(&often[0]) && twice[0] < often[0], "{often:?}");
    assert!((often[1] / often[0] - 0.05).abs() < 1e-3, "{often:?}");
    assert_eq!(often, decays(4000));
}

#[test]
fn steps_are_fitted_to_what_is_fixed() {
    assert!((0.75..1.3).contains(&(seconds(&fit(&[]).recipe) / SECONDS)));
    for set in [
        "train.batch_size=8",
        "train.batch_size=64",
        "train.seq_len=64",
        "train.seq_len=512",
        "train.grad_accumulation=4",
        "model.hidden_size=256",
        "model.hidden_size=112",
        "model.n_layers=9",
        "model.mlp_size=4096",
        "model.n_heads=8",
        "model.kind=gpt2",
        "model.kind=llama",
        "model.kind=nanochat",
        "optimizer.kind=adamw",
        "tokenizer.vocab_size=1024",
    ] {
        let fitted = fit(&[set]);
        check_time(&[set]);
        let value = set.split_once('=').unwrap().1;
        let written = fitted.recipe.to_toml();
        let is_there = [format!("= {value}\n"), format!("= \"{value}\"\n")];
        assert!(is_there.iter().any(|text| written.contains(text)), "{set}");
    }
    // What cannot be fitted is said.
    let reasons = fit(&["train.batch_size=4000"]).reasons.join("\n");
    assert!(reasons.contains("instead of 180 s: a run has at least 20 steps"), "{reasons}");
    let reasons = fit(&["train.steps=7"]).reasons.join("\n");
    assert!(reasons.contains("instead of 180 s: train.steps is given as 7"), "{reasons}");
}

#[test]
fn any_settings_together_keep_the_time_or_the_plan_says_so() {
    let choices: [(&str, &[&str]); 8] = [
        ("train.batch_size", &["1", "7", "32", "200"]),
        ("train.seq_len", &["16", "100", "700"]),
        ("train.grad_accumulation", &["2", "5"]),
        ("train.steps", &["1", "30", "4000"]),
        ("model.hidden_size", &["48", "160", "1024"]),
        ("model.n_layers", &["1", "5"]),
        ("model.mlp_size", &["100", "3000"]),
        ("tokenizer.vocab_size", &["600", "20000"]),
    ];
    let noise = Philox::new(3, 0);
    for case in 0..60 {
        let mut sets = Vec::new();
        for (index, (key, values)) in choices.iter().enumerate() {
            let draw = noise.block(case * 8 + index as u64);
            if draw[0].is_multiple_of(3) {
                sets.push(format!("{key}={}", values[draw[1] as usize % values.len()]));
            }
        }
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        check_time(&sets);
        let recipe = fit(&sets).recipe;
        recipe.validate().unwrap();
        assert!(recipe.eval.every_steps <= recipe.train.steps);
    }
}

#[test]
fn what_follows_the_steps_follows_fixed_steps() {
    let recipe = fit(&["train.steps=60"]).recipe;
    let decay_shape = DecayShape::Linear;
    let (warmup_steps, decay_steps, min_ratio) = (1, 36, 0.05);
    let schedule = ScheduleConfig::Wsd { warmup_steps, decay_steps, min_ratio, decay_shape };
    assert_eq!(recipe.schedule, schedule);
    let recipe = fit(&["train.steps=60", "optimizer.kind=adamw"]).recipe;
    assert_eq!(recipe.schedule, ScheduleConfig::Cosine { warmup_steps: 3, min_ratio: 0.05 });
    let every = [recipe.eval.every_steps, recipe.sample.every_steps, recipe.checkpoint.every_steps];
    assert_eq!(every, [6, 6, 15]);
    // A width of its own has its own rate, and a context its own rows.
    let recipe = fit(&["model.hidden_size=256", "optimizer.kind=adamw"]).recipe;
    assert!((recipe.optimizer.lr - 0.08 / 256.0).abs() < 1e-9);
    let head = |width: usize| {
        let recipe = fit(&[&format!("model.hidden_size={width}")]).recipe;
        let OptimizerRule::Muon(muon) = recipe.optimizer.rule else { panic!() };
        muon.head.lr
    };
    assert!((head(64) / head(256) - 2.0).abs() < 1e-3);
    assert_eq!(fit(&["model.context=100"]).recipe.train.seq_len, 100);
    // The recipe itself names what it cannot be.
    let sets = fixed(&["train.batch_size=0"]);
    let error = fit_pretrain(whole(Path::new(DATA)), Path::new("x"), 1, BUDGET, &sets, &mut |_| ())
        .err()
        .unwrap();
    assert!(error.to_string().contains("train.batch_size is 0"), "{error}");
}

#[test]
fn fields_of_the_data_are_those_that_are_fixed() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("in.jsonl");
    std::fs::write(&path, "{\"body\":\"The glass is warm.\"}\n".repeat(9)).unwrap();
    let sets = fixed(&["data.text_field=body"]);
    let fitted = fit_pretrain(whole(&path), Path::new("x"), 1, BUDGET, &sets, &mut |_| ()).unwrap();
    assert_eq!(fitted.recipe.sample.prompts, ["The glass is warm."]);
}

/// A run of a model with a context of 1024 tokens.
fn base(scratch: &Path) -> PathBuf {
    let mut recipe = recipe(scratch, llama(32), ObjectiveKind::NextToken);
    if let ModelConfig::Llama { context, .. } = &mut recipe.model {
        *context = 1024;
    }
    recipe.train.steps = 2;
    run_watched(&recipe, Watch::default());
    recipe.dir()
}

/// Conversations whose answers have `words` words, and of every twentieth `last`.
fn conversations(path: &Path, words: usize, last: usize) {
    let line = |i: usize| {
        let n = if i % 20 == 19 { last } else { words };
        let messages = serde_json::json!([
            { "role": "user", "content": format!("How is lens {i}?") },
            { "role": "assistant", "content": "clear and lovely ".repeat(n / 3) },
        ]);
        format!("{}\n", serde_json::json!({ "messages": messages }))
    };
    std::fs::write(path, (0..100).map(line).collect::<String>()).unwrap();
}

#[test]
fn rows_of_fine_tuning_are_as_long_as_the_data() {
    let scratch = tempfile::tempdir().unwrap();
    let (model, data) = (base(scratch.path()), scratch.path().join("talks.jsonl"));
    let out = scratch.path().join("tuned");
    let given = Finetuning {
        model: &model,
        data: whole(&data),
        kind: DatasetKind::Chat,
        out: &out,
        seed: 1,
    };
    let notes = |recipe: &Recipe| {
        let mut notes = String::new();
        let cache = scratch.path().join("cache");
        prepare(recipe, &cache, &mut |note| notes += &format!("{note}\n")).unwrap();
        notes
    };
    let tokens = |recipe: &Recipe| recipe.train.batch_size * recipe.train.seq_len;
    conversations(&data, 3, 3);
    let short = fit_finetune(given, &fixed(&[]), &mut |_| ()).unwrap();
    assert_eq!(short.recipe.train.seq_len, 64);
    assert!(short.reasons[0].contains("hold 100.0 % of them whole"), "{:?}", short.reasons);
    // Five in a hundred are long: 98 % must fit.
    conversations(&data, 3, 150);
    let long = fit_finetune(given, &fixed(&[]), &mut |_| ()).unwrap().recipe;
    assert!(long.train.seq_len > 512, "{}", long.train.seq_len);
    assert!(tokens(&long) <= 8192);
    assert!(notes(&long).contains("(0 cut at "), "{}", notes(&long));
    // A cut is told, of conversations and of answers.
    let cut = fit_finetune(given, &fixed(&["train.seq_len=64"]), &mut |_| ()).unwrap();
    assert!(cut.reasons[0].contains("rows of 64 hold 95.0 % of them whole"), "{:?}", cut.reasons);
    let notes = notes(&cut.recipe);
    assert!(notes.contains("cut at 64 tokens, "), "{notes}");
    assert!(notes.contains("answers lose their end") && notes.contains("not learnt"), "{notes}");
    // More than the model takes is never fitted.
    conversations(&data, 2000, 2000);
    let full = fit_finetune(given, &fixed(&[]), &mut |_| ()).unwrap().recipe;
    assert!(full.train.seq_len == 1024 && tokens(&full) <= 8192, "{:?}", full.train);
    // Steps make the passes over the data, whatever the batch.
    let with = |set: &str| fit_finetune(given, &fixed(&[set]), &mut |_| ()).unwrap().recipe;
    let seen = |recipe: &Recipe| (recipe.train.steps as usize * tokens(recipe)) as f64;
    for set in ["train.batch_size=1", "train.batch_size=3", "train.seq_len=256"] {
        let ratio = seen(&with(set)) / seen(&full);
        assert!((0.9..1.1).contains(&ratio), "{set}: {ratio} times the tokens");
    }
}
