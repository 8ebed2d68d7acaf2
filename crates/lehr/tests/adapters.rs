//! Adapters beside a model: used, merged, and refused where they do not belong.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;

use common::{
    fails, json_lines, newest_checkpoint, pretrain, run as run_lehr, succeeds, write_chat,
    write_text,
};
use lehr_model::adapt::{AdapterConfig, AdapterMethod, LoraConfig, LoraScaling, Targets};
use lehr_model::io::ModelSource;
use lehr_model::{Model, Weights};
use lehr_tensor::{Philox, Tensor};

/// Writes an adapter with random values for the model in `base`.
fn write_adapter(base: &Path, dir: &Path) {
    let config = AdapterConfig {
        targets: Targets::Blocks,
        method: AdapterMethod::Lora(LoraConfig { rank: 3, alpha: 6.0, scaling: LoraScaling::Rank }),
        seed: 1,
    };
    let source = ModelSource::open(base).unwrap();
    let model = Model::open_adapted(&source, Weights::F32, &config).unwrap();
    for (i, param) in model.params().trainable().enumerate() {
        let mut value = Tensor::zeros(param.shape()).unwrap();
        Philox::new(3, i as u64).fill_normal(value.data_mut(), 0.2);
        param.set(&value).unwrap();
    }
    model.save_adapter(dir, "base").unwrap();
}

#[test]
fn an_adapter_changes_what_a_model_says_and_its_merged_copy_says_the_same() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    pretrain(dir, "base", &[]);
    write_adapter(&newest_checkpoint(&dir.join("base")), &dir.join("adapter"));
    write_text(dir, 20);
    let generate = |model: &str, more: &[&str]| {
        let args = ["generate", model, "-p", "glass 12", "-n", "12", "--greedy"];
        succeeds(dir, &[&args[..], more].concat())
    };
    let bits = |model: &str, more: &[&str]| {
        let args = ["eval", model, "--data", "text.txt", "--json"];
        let line = json_lines(&succeeds(dir, &[&args[..], more].concat())).remove(0);
        line["bits_per_byte"].as_f64().unwrap()
    };
    let with = ["--adapter", "adapter"];
    let (plain, adapted) = (generate("base", &[]), generate("base", &with));
    assert_ne!(plain, adapted);
    assert!((bits("base", &[]) - bits("base", &with)).abs() > 0.01);
    for copy in ["merged", "merged.gguf"] {
        let convert = ["convert", "base", "--adapter", "adapter", "--to", copy, "--format", "f32"];
        let said = json_lines(&succeeds(dir, &[&convert[..], &["--json"]].concat())).remove(0);
        assert_eq!(said["passed"], true, "{said}");
        assert_eq!(generate(copy, &[]), adapted, "{copy}");
        assert!((bits(copy, &[]) - bits("base", &with)).abs() < 1e-4, "{copy}");
    }
    fails(dir, &["generate", "adapter", "-p", "x"], &["it is an adapter", "--adapter adapter"]);
    fails(dir, &["generate", "base", "-p", "x", "--adapter", "none"], &["adapter_config.json"]);
    let random = ["bench", "decode", "--shape", "8b", "--adapter", "adapter"];
    fails(dir, &random, &["--adapter belongs to a model"]);
}

#[test]
fn an_adapter_is_trained_used_and_merged() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    pretrain(dir, "base", &[]);
    write_chat(dir, 40);
    let tune = ["finetune", "--model", "base", "--data", "chat.jsonl", "--plain"];
    let lora = ["--method", "lora", "--rank", "4", "--out", "tuned", "--set", "train.steps=8"];
    succeeds(dir, &[&tune[..], &lora[..]].concat());
    let recipe = std::fs::read_to_string(dir.join("tuned/recipe.toml")).unwrap();
    assert!(recipe.contains("rank = 4") && recipe.contains("alpha = 8.0"), "{recipe}");
    let generate =
        |model: &str| succeeds(dir, &["generate", model, "-p", "glass 12", "-n", "12", "--greedy"]);
    let adapted = generate("tuned");
    let merge = ["convert", "base", "--adapter", "tuned", "--to", "whole", "--format", "f32"];
    succeeds(dir, &merge);
    assert_eq!(generate("whole"), adapted);
    // The run has a chat template and an end of turn that its base lacks; copies keep them.
    assert!(!newest_checkpoint(&dir.join("base")).join("chat_template.jinja").exists());
    let gguf = ["convert", "base", "--adapter", "tuned", "--to", "whole.gguf", "--format", "f32"];
    succeeds(dir, &gguf);
    let chat = |model: &[&str]| {
        let args =
            [&["chat"], model, &["-p", "What of glass 12?", "--greedy", "-n", "24"]].concat();
        succeeds(dir, &args)
    };
    let answer = chat(&["tuned"]);
    assert!(!answer.trim().is_empty());
    for model in [&["base", "--adapter", "tuned"][..], &["whole"], &["whole.gguf"]] {
        assert_eq!(chat(model), answer, "{model:?}");
    }
    let text = |dir: &Path, name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    let (run, copy) = (newest_checkpoint(&dir.join("tuned")), dir.join("whole"));
    for name in ["chat_template.jinja", "generation_config.json"] {
        assert_eq!(text(&run, name), text(&copy, name), "{name}");
    }

    // Other weights of the same shape, and files that nothing reads, are named.
    pretrain(dir, "other", &["run.seed=9"]);
    let ran = run_lehr(dir, &["generate", "other", "--adapter", "tuned", "-p", "glass", "-n", "2"]);
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    assert!(ran.err.contains("the adapter was trained on other weights than those of"), "{ran:#?}");
    write_adapter(&newest_checkpoint(&dir.join("base")), &dir.join("plain"));
    std::fs::write(dir.join("plain/chat_template.jinja"), "x").unwrap();
    let plain = ["generate", "base", "--adapter", "plain", "-p", "glass", "-n", "2"];
    let ran = run_lehr(dir, &plain);
    let named = "files of the adapter's folder that are not read: chat_template.jinja";
    assert!(ran.err.contains(named) && !ran.err.contains("trained on other"), "{ran:#?}");

    let again = ["finetune", "--model", "tuned", "--data", "chat.jsonl", "--out", "again"];
    let hint = "lehr convert MODEL --adapter";
    fails(dir, &again, &["it has an adapter and not the weights of the model", hint]);
    fails(dir, &["inspect", "tuned"], &["it has an adapter and not the weights", hint]);
    let full = [&tune[..], &["--method", "full", "--rank", "4"]].concat();
    fails(dir, &full, &["--rank belongs to an adapter", "--method lora"]);
    let twice = [&tune[..], &["--method", "lora", "--set", "adapter.kind=lora"]].concat();
    fails(dir, &twice, &["--method and --set adapter.kind are both given"]);
}
