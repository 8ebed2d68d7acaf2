//! The files of a checkpoint with which other programs open the model.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};

use common::{Watch, llama, recipe, run_watched, write_data};
use lehr_infer::{Loaded, resolve_model};
use lehr_model::Weights;
use lehr_model::io::read_json;
use lehr_train::Recipe;
use lehr_train::recipe::{DataConfig, ModelConfig, ObjectiveKind, TokenizerConfig};
use serde_json::{Value, json};

const TEMPLATE: &str = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}\
    {% if add_generation_prompt %}<|assistant|>{% endif %}";

/// A trained model as a folder like those that are published: with a template, settings of
/// generation, and a key that lehr does not know.
fn published(scratch: &Path, base: &Recipe) -> PathBuf {
    let (from, dir) = (resolve_model(&base.dir()).unwrap(), scratch.join("published"));
    std::fs::create_dir_all(&dir).unwrap();
    for name in ["model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(from.join(name), dir.join(name)).unwrap();
    }
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
    let config = std::fs::read_to_string(from.join("config.json")).unwrap();
    write("config.json", &config.replacen('{', "{\n  \"my_key\": 1.50e-07,", 1));
    write("chat_template.jinja", TEMPLATE);
    write("generation_config.json", "{\"eos_token_id\": [0, 300], \"top_p\": 0.80}");
    dir
}

fn checkpoint(recipe: &Recipe) -> PathBuf {
    resolve_model(&recipe.dir()).unwrap()
}

fn text(dir: &Path, name: &str) -> String {
    std::fs::read_to_string(dir.join(name)).unwrap()
}

fn ends(dir: &Path) -> Vec<Value> {
    let generation = read_json(&dir.join("generation_config.json")).unwrap();
    match &generation["eos_token_id"] {
        Value::Array(ids) => ids.clone(),
        one => vec![one.clone()],
    }
}

#[test]
fn checkpoints_keep_what_a_loaded_model_says_of_itself() {
    let scratch = tempfile::tempdir().unwrap();
    let scratch = scratch.path();
    let base = recipe(scratch, llama(32), ObjectiveKind::NextToken);
    run_watched(&base, Watch::default());
    let new = checkpoint(&base);
    let config = read_json(&new.join("tokenizer_config.json")).unwrap();
    assert_eq!(config["tokenizer_class"], "PreTrainedTokenizerFast");
    assert_eq!(config["eos_token"], "<|endoftext|>");
    assert_eq!((ends(&new), new.join("chat_template.jinja").exists()), (vec![json!(0)], false));

    let published = published(scratch, &base);
    let labels = [ObjectiveKind::CLASSIFY, ObjectiveKind::Tag];
    for objective in [[ObjectiveKind::NextToken, ObjectiveKind::Chat], labels].concat() {
        let mut tuned = Recipe {
            data: DataConfig {
                path: write_data(scratch, objective).display().to_string(),
                ..base.data.clone()
            },
            tokenizer: TokenizerConfig::Model,
            model: ModelConfig::Load { path: published.display().to_string() },
            objective,
            ..base.clone()
        };
        tuned.train.steps = 2;
        tuned.run.dir = scratch.join(format!("tuned-{objective:?}")).display().to_string();
        run_watched(&tuned, Watch::default());
        let dir = checkpoint(&tuned);
        assert!(text(&dir, "config.json").contains("\"my_key\": 1.50e-07,"));
        assert!(text(&dir, "generation_config.json").contains("\"top_p\": 0.80"));
        let template = text(&dir, "chat_template.jinja");
        assert_eq!(template.trim(), text(&published, "chat_template.jinja").trim());
        let loaded = Loaded::open(&dir, Weights::F32);
        if let (ObjectiveKind::Chat, Ok(loaded)) = (objective, &loaded) {
            let stops = loaded.template().unwrap().stop_ids(&loaded.tokenizer).unwrap();
            assert!(stops.len() >= 3, "0, 300 and the end of a turn: {stops:?}");
            assert!(stops.iter().all(|id| ends(&dir).contains(&json!(id))), "{:?}", ends(&dir));
        } else {
            assert_eq!(ends(&dir), [json!(0), json!(300)]);
        }
    }
}
