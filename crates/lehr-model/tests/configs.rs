//! `config.json` in all its spellings: missing keys, older versions of transformers, invalid
//! settings.
//!
//! The expected values are those of the configuration classes of Hugging Face transformers 5.23.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use lehr_model::{Config, Model, RopeScaling, Tokens};
use lehr_tensor::no_grad;
use lehr_tensor::ops::rope::frequencies::Yarn;
use serde_json::{Value, json};

fn parse(json: &Value) -> Config {
    Config::from_json(json).unwrap_or_else(|e| panic!("{e}: {json}"))
}

/// Returns `base` with the keys of `more`.
fn with(base: &Value, more: &Value) -> Value {
    let mut json = base.clone();
    json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json
}

/// Returns a model of any family that is small enough to build.
fn small(model_type: &str) -> Value {
    json!({
        "model_type": model_type, "vocab_size": 40, "hidden_size": 24, "intermediate_size": 20,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
        "max_position_embeddings": 64, "query_pre_attn_scalar": 6,
    })
}

const FAMILIES: [&str; 5] = ["llama", "mistral", "qwen2", "qwen3", "gemma3_text"];

/// Computes logits of a new model: two files that mean the same agree on them.
fn logits(json: &Value) -> Vec<f32> {
    let model = Model::new(parse(json), 7).unwrap();
    let ids: Vec<i32> = (0..20).map(|i| (i * 7) % 40).collect();
    let tokens = Tokens::new(&ids, 1, 0).unwrap();
    no_grad(|| model.logits(&model.hidden(&tokens).unwrap()).unwrap().to_vec())
}

#[test]
fn missing_keys_are_those_of_the_reference() {
    // layers, heads, kv heads, head width, width, vocabulary, context
    for (model_type, sizes) in [
        ("llama", [32, 32, 32, 128, 4096, 32_000, 2048]),
        ("mistral", [32, 32, 8, 128, 4096, 32_000, 131_072]),
        ("qwen2", [32, 32, 32, 128, 4096, 151_936, 32_768]),
        ("qwen3", [32, 32, 32, 128, 4096, 151_936, 32_768]),
        ("gemma3_text", [26, 8, 4, 256, 2304, 262_208, 131_072]),
    ] {
        let config = parse(&json!({ "model_type": model_type }));
        let spec = config.spec();
        let found = [
            spec.n_layers,
            spec.n_heads,
            spec.n_kv_heads,
            spec.head_dim,
            spec.hidden_size,
            spec.vocab_size,
            spec.max_positions,
        ];
        assert_eq!(found, sizes, "{model_type}");
        let tied = config.to_json()["tie_word_embeddings"].as_bool().unwrap();
        assert_eq!(tied, model_type == "gemma3_text");
    }
    // The widths that do not follow from the others.
    let head_dim = |model_type: &str| {
        let heads = json!({ "num_attention_heads": 4, "num_key_value_heads": 4 });
        parse(&with(&json!({ "model_type": model_type, "hidden_size": 64 }), &heads))
            .spec()
            .head_dim
    };
    assert_eq!(FAMILIES[..3].iter().map(|f| head_dim(f)).collect::<Vec<_>>(), [16, 16, 16]);
    assert_eq!((head_dim("qwen3"), head_dim("gemma3_text")), (128, 256));
    // Null differs from missing: no window instead of the default one.
    let window = |json: Value| match parse(&with(&small("mistral"), &json)) {
        Config::Mistral(config) => config.sliding_window,
        other => panic!("{other:?}"),
    };
    assert_eq!(window(json!({})), Some(4096));
    assert_eq!(window(json!({ "sliding_window": null })), None);
}

#[test]
fn both_spellings_of_rope_mean_the_same() {
    for family in &FAMILIES[..4] {
        let old = json!({
            "rope_theta": 5000.0,
            "rope_scaling": {
                "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16
            },
        });
        let new = json!({ "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0,
            "original_max_position_embeddings": 16,
        } });
        let beside = json!({
            "rope_theta": 5000.0, "original_max_position_embeddings": 16,
            "rope_scaling": { "rope_type": "yarn", "factor": 4.0, "beta_fast": 0 },
        });
        let small = small(family);
        let want = logits(&with(&small, &old));
        assert_eq!(logits(&with(&small, &new)), want, "{family}");
        assert_eq!(logits(&with(&small, &beside)), want, "{family}");
        assert_ne!(logits(&with(&small, &json!({ "rope_theta": 5000.0 }))), want, "{family}");
        assert_ne!(logits(&small), logits(&with(&small, &json!({ "rope_theta": 5000.0 }))));
    }
    let gemma = small("gemma3_text");
    let gemma = with(&gemma, &json!({ "sliding_window": 5, "sliding_window_pattern": 2 }));
    let old = json!({
        "rope_theta": 5000.0, "rope_local_base_freq": 300.0,
        "rope_scaling": { "rope_type": "linear", "factor": 4.0 },
    });
    let new = json!({ "rope_parameters": {
        "full_attention": { "rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0 },
        "sliding_attention": { "rope_type": "default", "rope_theta": 300.0 },
    } });
    let want = logits(&with(&gemma, &old));
    assert_eq!(logits(&with(&gemma, &new)), want);
    let usual = json!({ "rope_theta": 1e6, "rope_local_base_freq": 1e4 });
    assert_eq!(logits(&gemma), logits(&with(&gemma, &usual)));
    assert_ne!(logits(&gemma), want);
}

#[test]
fn rope_settings_keep_the_reference_s_precedence() {
    let settings = |more: Value| match parse(&with(&small("llama"), &more)) {
        Config::Llama(config) => config.rope().unwrap(),
        other => panic!("{other:?}"),
    };
    let both = settings(json!({
        "rope_theta": 300.0, "rope_scaling": { "rope_type": "linear", "factor": 2.0 },
        "rope_parameters": { "rope_type": "default", "rope_theta": 70.0 },
    }));
    assert_eq!((both.theta, both.scaling), (300.0, RopeScaling::Linear { factor: 2.0 }));
    // Without the context of pre-training it is the model's own; null makes the factor its ratio.
    let yarn = |parameters: Value| match settings(json!({ "rope_parameters": parameters })).scaling
    {
        RopeScaling::Yarn(yarn) => yarn,
        other => panic!("{other:?}"),
    };
    assert_eq!(yarn(json!({ "rope_type": "yarn", "factor": 4 })), Yarn::new(4.0, 64.0));
    let all = json!({
        "rope_type": "yarn", "factor": null, "original_max_position_embeddings": 32,
        "beta_fast": 16, "beta_slow": null, "truncate": false, "attention_factor": 1.5,
        "mscale": 0.7, "mscale_all_dim": 1.4,
    });
    let want = Yarn {
        beta_fast: 16.0,
        truncate: false,
        attention_factor: Some(1.5),
        mscale: Some(0.7),
        mscale_all_dim: Some(1.4),
        ..Yarn::new(2.0, 32.0)
    };
    assert_eq!(yarn(all), want);
}

#[test]
fn windows_follow_every_way_of_naming_them() {
    let (full, sliding) = ("full_attention", "sliding_attention");
    for family in ["qwen2", "qwen3"] {
        let on = json!({ "use_sliding_window": true, "sliding_window": 4, "max_window_layers": 1 });
        let off =
            json!({ "use_sliding_window": false, "sliding_window": 4, "max_window_layers": 0 });
        let types = json!({
            "use_sliding_window": true, "sliding_window": 4,
            "layer_types": [full, sliding, sliding],
        });
        let small = small(family);
        assert_eq!(logits(&with(&small, &on)), logits(&with(&small, &types)), "{family}");
        assert_eq!(logits(&with(&small, &off)), logits(&small), "{family}");
        assert_ne!(logits(&with(&small, &on)), logits(&small), "{family}");
    }
    let gemma = with(&small("gemma3_text"), &json!({ "sliding_window": 4 }));
    let types = json!({ "layer_types": [sliding, "attention", sliding] });
    let want = logits(&with(&gemma, &types));
    for key in ["sliding_window_pattern", "_sliding_window_pattern"] {
        assert_eq!(logits(&with(&gemma, &json!({ key: 2 }))), want);
    }
    assert_ne!(logits(&gemma), want);
}

#[test]
fn the_text_model_of_a_model_with_images_is_read() {
    let mut text = with(&small("gemma3_text"), &json!({ "sliding_window": 4 }));
    let images = json!({
        "model_type": "gemma3", "eos_token_id": [1, 106], "vision_config": {}, "text_config": text,
    });
    text["eos_token_id"] = json!([1, 106]);
    assert_eq!(parse(&images), parse(&text));
    assert_eq!(parse(&images).to_json()["model_type"], "gemma3_text");
}

/// Writes a safetensors file with other names.
fn renamed(file: &[u8], name: impl Fn(&str) -> String) -> Vec<u8> {
    let (len, rest) = file.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*len) as usize);
    let header: serde_json::Map<String, Value> = serde_json::from_slice(header).unwrap();
    let rename = |key: &str| if key == "__metadata__" { key.to_owned() } else { name(key) };
    let header: Value = header.into_iter().map(|(key, value)| (rename(&key), value)).collect();
    let header = header.to_string().into_bytes();
    [&(header.len() as u64).to_le_bytes()[..], &header, data].concat()
}

#[test]
fn weights_are_found_under_all_published_names() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let scratch = tempfile::tempdir().unwrap();
    for (model, prefix) in [
        ("qwen3", ""),
        ("gemma3", ""),
        ("gemma3", "language_model.model."),
        ("gemma3", "model.language_model."),
    ] {
        let dir = golden.join(model);
        let file = std::fs::read(dir.join("model.safetensors")).unwrap();
        let file = renamed(&file, |name| name.replacen("model.", prefix, 1));
        std::fs::copy(dir.join("config.json"), scratch.path().join("config.json")).unwrap();
        std::fs::write(scratch.path().join("model.safetensors"), file).unwrap();
        let (want, found) = (Model::load(&dir).unwrap(), Model::load(scratch.path()).unwrap());
        for (want, found) in want.params().params().iter().zip(found.params().params()) {
            assert_eq!(want.name(), found.name());
            assert_eq!(want.tensor().to_vec(), found.tensor().to_vec(), "{prefix}{}", want.name());
        }
    }
}

#[test]
fn a_written_file_is_read_as_the_same() {
    for family in FAMILIES {
        let json = with(&small(family), &json!({ "sliding_window": null, "rope_theta": 500.0 }));
        let json = match family {
            "gemma3_text" => {
                with(&json, &json!({ "sliding_window": 4, "rope_local_base_freq": 9.0 }))
            }
            _ => json,
        };
        let config = parse(&json);
        assert_eq!(parse(&config.to_json()), config, "{family}");
    }
}

#[test]
fn impossible_settings_are_named() {
    let says = |family: &str, more: Value, text: &str| {
        let error = Config::from_json(&with(&small(family), &more)).unwrap_err().to_string();
        assert!(error.contains(text), "{error:?} does not say {text:?}");
    };
    for family in FAMILIES {
        says(family, json!({ "num_key_value_heads": 3 }), "num_key_value_heads is 3");
        says(family, json!({ "num_hidden_layers": 0 }), "num_hidden_layers is 0");
        says(family, json!({ "head_dim": 5 }), "head_dim is 5");
        says(family, json!({ "head_dim": u64::MAX - 1 }), "head_dim is");
        says(family, json!({ "vocab_size": "many" }), "many");
        says(family, json!({ "partial_rotary_factor": 0.5 }), "partial_rotary_factor is 0.5");
    }
    for family in &FAMILIES[..4] {
        let says = |rope: Value, text: &str| {
            says(family, json!({ "rope_parameters": rope }), text);
        };
        says(json!({ "rope_type": "dynamic", "factor": 2 }), "rope_type is dynamic");
        says(json!({ "rope_type": "linear" }), "factor is missing");
        says(json!({ "rope_type": "linear", "factor": -2 }), "factor is -2");
        says(json!({ "rope_type": "yarn", "factor": "4" }), "factor is \"4\"");
        says(json!({ "rope_type": "yarn", "factor": 4, "truncate": 1 }), "truncate is 1");
        says(json!({ "rope_type": "yarn", "factor": 4, "rope_theta": 1 }), "rope_theta is 1");
        says(json!({ "rope_theta": 1e-300 }), "finite");
        says(json!({ "full_attention": { "rope_theta": 1.0 } }), "a map by full_attention");
        let equal = json!({
            "rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4,
        });
        says(equal, "high_freq_factor is 4");
    }
    says("mistral", json!({ "sliding_window": 0 }), "sliding_window is 0");
    says("mistral", json!({ "layer_types": ["full_attention"] }), "layer_types is full_attention");
    let sliding = json!({ "layer_types": ["full_attention", "sliding_attention", "attention"] });
    says("qwen2", sliding.clone(), "sliding_window is null or switched off");
    says("qwen3", json!({ "layer_types": ["full_attention"] }), "of 1 entries");
    says("qwen3", json!({ "layer_types": ["a", "b", "c"] }), "layer_types is a");
    says(
        "gemma3_text",
        with(&sliding, &json!({ "sliding_window": null })),
        "sliding_window is null",
    );
    says("gemma3_text", json!({ "sliding_window_pattern": 0 }), "sliding_window_pattern is 0");
    says("gemma3_text", json!({ "attn_logit_softcapping": 50.0 }), "attn_logit_softcapping is 50");
    says("gemma3_text", json!({ "final_logit_softcapping": 0.0 }), "final_logit_softcapping is 0");
    says("gemma3_text", json!({ "use_bidirectional_attention": true }), "use_bidirectional");
    says(
        "gemma3_text",
        json!({ "rope_parameters": { "rope_theta": 1.0 } }),
        "one map for all blocks",
    );
    says("gemma3", json!({}), "text_config is missing");
    says(
        "llama",
        json!({ "head_dim": null, "num_attention_heads": 10 }),
        "num_attention_heads is 10",
    );
}
