//! `lehr inspect`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use lehr_infer::{Inspection, TokenizerFacts};
use lehr_model::{Config, Outline, Role, StoredTensor};
use lehr_train::{RunDir, TrainState};
use serde_json::{Value, json};

use super::memory::{self, FORMATS, Needs, bytes, line, scaled};

/// Show what a model is, without loading it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run directory, checkpoint, Hugging Face folder, GGUF file or file of weights
    model: PathBuf,
    /// List every tensor of the files
    #[arg(long)]
    tensors: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let found = Inspection::open(&args.model)?;
    let training = training(&args.model, &found.path);
    if args.json {
        println!("{}", to_json(&found, training, args.tensors));
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}", found.path.display());
    if let Some(config) = &found.config {
        show_architecture(config, found.outline.as_ref());
    }
    if let Some(outline) = &found.outline {
        show_parameters(outline);
    }
    memory::show(&found);
    show_files(&found);
    if let Some(tokenizer) = &found.tokenizer {
        show_tokenizer(tokenizer);
    }
    if let Some(template) = &found.chat_template {
        show_template(template);
    }
    for (key, value) in training.iter().flatten() {
        line(key, &value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    }
    for warning in &found.warnings {
        line("warning", warning);
    }
    for problem in &found.problems {
        line("problem", problem);
    }
    if args.tensors {
        println!();
        show_tensors(&found.stored);
    }
    Ok(ExitCode::SUCCESS)
}

fn show_architecture(config: &Config, outline: Option<&Outline>) {
    let spec = config.spec();
    line("architecture", config.class());
    let (layers, width) = (spec.n_layers, spec.hidden_size);
    let (heads, kv, e) = (spec.n_heads, spec.n_kv_heads, spec.head_dim);
    line("blocks", &format!("{layers} of width {width}"));
    line("heads", &format!("{heads} of width {e}, {kv} for keys and values"));
    line("vocabulary", &format!("{} ids", spec.vocab_size));
    let kind = match outline {
        Some(outline) if !outline.is_causal => " (encoder)",
        _ => "",
    };
    line("context", &format!("{} tokens{kind}", spec.max_positions));
}

fn show_parameters(outline: &Outline) {
    let total = outline.n_values();
    line("parameters", &count(total));
    for role in Role::ALL {
        let n = outline.n_values_of(role);
        if n > 0 {
            let share = 100.0 * n as f64 / total as f64;
            println!("    {:20} {:>10}  {share:4.1} %", role.to_string(), count(n));
        }
    }
}

fn show_files(found: &Inspection) {
    for (format, (n, n_bytes)) in formats(&found.stored) {
        line("stored", &format!("{n} tensors of {format}, {}", bytes(n_bytes)));
    }
    if found.outline.is_some() {
        let unused: Vec<_> = found.unused().map(|tensor| tensor.name.as_str()).collect();
        if let Some(first) = unused.first() {
            line("not used", &format!("{} of them, such as {first}", unused.len()));
        }
    }
}

fn show_tokenizer(tokenizer: &TokenizerFacts) {
    line("tokenizer", &format!("{}, {} ids", tokenizer.kind, tokenizer.vocab_size));
    const SHOWN: usize = 8;
    let shown = tokenizer.special.iter().take(SHOWN);
    let names: Vec<_> = shown.map(|(id, name)| format!("{name} ({id})")).collect();
    let more = match tokenizer.special.len().saturating_sub(SHOWN) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    line("special", &format!("{}{more}", names.join(", ")));
}

fn show_template(template: &str) {
    line("chat template", &format!("{} characters", template.chars().count()));
    for text in template.lines().filter(|text| !text.trim().is_empty()).take(3) {
        println!("    {}", text.chars().take(90).collect::<String>());
    }
}

fn show_tensors(stored: &[StoredTensor]) {
    let width = stored.iter().map(|tensor| tensor.name.chars().count()).max().unwrap_or(0);
    for tensor in stored {
        println!("{:width$}  {:8}  {:?}", tensor.name, tensor.format, tensor.shape);
    }
}

/// Number of tensors and bytes of each format.
fn formats(stored: &[StoredTensor]) -> BTreeMap<&str, (usize, u64)> {
    let mut formats = BTreeMap::new();
    for tensor in stored {
        let (n, n_bytes) = formats.entry(tensor.format.as_str()).or_insert((0, 0));
        *n += 1;
        *n_bytes += tensor.n_bytes;
    }
    formats
}

/// Reads what the run directory says about the training of a checkpoint, if there is one.
fn training(run: &Path, checkpoint: &Path) -> Option<serde_json::Map<String, Value>> {
    let run = match run.join("recipe.toml").is_file() {
        true => run.to_owned(),
        // run/checkpoints/step-N
        false => checkpoint.parent()?.parent()?.to_owned(),
    };
    let recipe = RunDir::load_recipe(&run).ok()?;
    let state = std::fs::read_to_string(checkpoint.join("state.json")).ok()?;
    let state: TrainState = serde_json::from_str(&state).ok()?;
    let objective = serde_json::to_value(recipe.objective).ok()?;
    let facts = json!({
        "objective": objective.get("kind").cloned().unwrap_or(objective),
        "data": recipe.data.path,
        "steps": state.step,
        "tokens seen": state.tokens_seen,
        "seconds": state.elapsed_s.round(),
        "seed": recipe.run.seed,
    });
    facts.as_object().cloned()
}

fn to_json(
    found: &Inspection,
    training: Option<serde_json::Map<String, Value>>,
    tensors: bool,
) -> Value {
    let mut json =
        json!({ "path": found.path, "warnings": found.warnings, "problems": found.problems });
    if let Some(config) = &found.config {
        let spec = config.spec();
        json["architecture"] = json!({
            "class": config.class(),
            "layers": spec.n_layers,
            "hidden_size": spec.hidden_size,
            "heads": spec.n_heads,
            "kv_heads": spec.n_kv_heads,
            "head_dim": spec.head_dim,
            "vocab_size": spec.vocab_size,
            "context": spec.max_positions,
        });
    }
    if let (Some(config), Some(outline)) = (&found.config, &found.outline) {
        let roles = Role::ALL
            .map(|role| (role.to_string().replace(' ', "_"), outline.n_values_of(role).into()));
        let weights =
            FORMATS.map(|(_, format)| (format!("{format:?}"), outline.weight_bytes(format).into()));
        json["causal"] = outline.is_causal.into();
        json["parameters"] = outline.n_values().into();
        json["parameters_by_role"] = Value::Object(roles.into_iter().collect());
        json["weight_bytes"] = Value::Object(weights.into_iter().collect());
        if outline.is_causal {
            let n = config.spec().n_cached();
            json["cache_bytes"] = json!({ "F32": 4 * n, "BF16": 2 * n });
        }
        if let Some(needs) = Needs::of(found) {
            let (f32, bf16) = (needs.per_token(4), needs.per_token(2));
            json["cache_bytes_per_token"] = json!({ "F32": f32, "BF16": bf16 });
            json["fits"] = needs.to_json();
        }
        json["unused_tensors"] = found.unused().map(|t| t.name.clone()).collect();
    }
    let stored = formats(&found.stored).into_iter();
    let stored = stored.map(|(f, (n, bytes))| json!({ "format": f, "tensors": n, "bytes": bytes }));
    json["stored"] = stored.collect();
    if let Some(tokenizer) = &found.tokenizer {
        let special = tokenizer.special.iter().map(|(id, name)| (name.clone(), (*id).into()));
        json["tokenizer"] = json!({
            "kind": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "special": Value::Object(special.collect()),
        });
    }
    if let Some(template) = &found.chat_template {
        json["chat_template"] = template.clone().into();
    }
    if let Some(training) = training {
        json["training"] = training.into();
    }
    if tensors {
        let tensor = |t: &StoredTensor| {
            let (name, bytes) = (&t.name, t.n_bytes);
            json!({ "name": name, "shape": t.shape, "format": t.format, "bytes": bytes })
        };
        json["tensors"] = found.stored.iter().map(tensor).collect();
    }
    json
}

/// Formats a count for people: `124.4 M`.
fn count(n: u64) -> String {
    scaled(n, 1000.0, ["", " k", " M", " G", " T"])
}
