//! What the files of a model hold is used, refused by name, or named in a warning.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use lehr_model::io::gguf::{FileType, GgufOptions, Metadata};
use lehr_model::io::{Checkpoint, TensorFile, read_json, write_json, write_parts};
use lehr_model::{Classifier, Config, Model, Tokens};
use lehr_tensor::{Tensor, no_grad};
use proptest::prelude::*;
use serde_json::{Value, json};

type Named = Vec<(String, Tensor)>;

const FAMILIES: [&str; 14] = [
    "gpt2",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma3",
    "glm",
    "glm4",
    "chatglm-6b",
    "chatglm2-6b",
    "glm-130b",
    "bert",
    "nanochat",
    "lehr",
];

/// Families whose weights lie in one file.
const IN_ONE_FILE: [&str; 6] = ["gpt2", "llama", "gemma3", "glm", "chatglm2-6b", "bert"];

fn golden(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(family)
}

fn config(family: &str) -> Value {
    read_json(&golden(family).join("config.json")).unwrap()
}

fn tensors(family: &str) -> Named {
    let checkpoint = Checkpoint::open(&golden(family)).unwrap();
    let read = |name: &str| {
        let shape = checkpoint.shape(name).unwrap();
        checkpoint.tensor(name, shape.into()).ok().map(|tensor| (name.to_owned(), tensor))
    };
    checkpoint.names().filter_map(read).collect()
}

fn write(dir: &Path, config: &Value, tensors: Named) {
    fs::create_dir_all(dir).unwrap();
    write_json(&dir.join("config.json"), config).unwrap();
    write_weights(&dir.join("model.safetensors"), tensors);
}

fn write_weights(path: &Path, tensors: Named) {
    write_parts(path, TensorFile::new(tensors, &[]).unwrap().parts()).unwrap();
}

fn ones(shape: &[usize]) -> Tensor {
    let n = shape.iter().product();
    Tensor::from_slice(&vec![1.0; n], shape).unwrap()
}

fn logits(model: &Model) -> Vec<f32> {
    let tokens = Tokens::new(&[5, 6, 7, 8], 1, 0).unwrap();
    no_grad(|| model.logits(&model.hidden(&tokens).unwrap()).unwrap().to_vec())
}

fn error_of(dir: &Path) -> String {
    let error = Model::load(dir).err().unwrap();
    assert!(error.hint().is_some(), "{error} has no hint");
    error.to_string()
}

#[test]
fn the_files_of_every_family_have_nothing_that_is_not_used() {
    for family in FAMILIES {
        assert_eq!(Config::unread_keys(&config(family)), [""; 0], "{family}");
        let tensors = |warning: &String| warning.contains("not used by the model");
        let model = Model::load(&golden(family)).unwrap();
        assert_eq!(model.warnings().iter().find(|w| tensors(w)), None, "{family}");
    }
}

fn values() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<bool>().prop_map(Value::from),
        (101..109i32).prop_map(Value::from),
        (101.0..109.0f64).prop_map(Value::from),
        "[a-z]{1,8}".prop_map(Value::from),
        Just(json!(["x", 2])),
        Just(json!({ "x": 2 })),
    ]
}

/// Keys that a family may know, and those of families that lehr does not know.
const PLAUSIBLE: [&str; 16] = [
    "attention_bias",
    "mlp_bias",
    "sliding_window",
    "logit_scale",
    "num_experts",
    "rope_scaling",
    "rope_theta",
    "partial_rotary_factor",
    "attn_logit_softcapping",
    "query_pre_attn_scalar",
    "hidden_act",
    "use_parallel_residual",
    "layer_types",
    "quantization_config",
    "embedding_multiplier",
    "norm_epsilon",
];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_extra_key_is_used_or_named(
        family in 0..FAMILIES.len(),
        key in prop_oneof![
            "[a-z]{2,6}_[a-z]{2,6}_x",
            (0..PLAUSIBLE.len()).prop_map(|i| PLAUSIBLE[i].to_owned()),
        ],
        value in values(),
    ) {
        let mut without = config(FAMILIES[family]);
        without.as_object_mut().unwrap().shift_remove(&key);
        let mut with = without.clone();
        with[&key] = value.clone();
        match (Config::from_json(&with), Config::from_json(&without)) {
            (Err(error), _) => {
                let text = error.to_string();
                let names = text.contains(&key) || key.starts_with("rope") && text.contains("rope");
                // serde's words for a value of another type have no key.
                prop_assert!(names || text.contains("invalid type"), "{key}: {text}");
            }
            (Ok(read), Ok(plain)) if read != plain => {}
            (Ok(_), plain) => {
                let all = Config::unread_keys(&with).join(" ");
                let is_off = value == json!(false);
                let is_named = all.contains(&format!("`{key}`"));
                // `true` changes nothing where it is the default; `false` then does.
                let is_default = value == json!(true) && {
                    with[&key] = json!(false);
                    let off = Config::from_json(&with);
                    off.is_ok_and(|off| plain.is_ok_and(|plain| plain != off))
                };
                prop_assert!(is_named || is_off || is_default, "{key} = {value}: {all}");
            }
        }
    }

    #[test]
    fn an_extra_tensor_is_used_or_named(
        family in 0..IN_ONE_FILE.len(),
        name in prop_oneof![
            "[a-z]{2,6}\\.[a-z]{2,6}\\.(weight|bias)",
            Just("model.layers.0.mlp.up_proj.bias".to_owned()),
            Just("model.layers.77.mlp.up_proj.weight".to_owned()),
            Just("transformer.h.0.attn.c_extra.bias".to_owned()),
            Just("score.weight".to_owned()),
            Just("lm_head.bias".to_owned()),
            Just("model.layers.0.self_attn.q_proj.qweight".to_owned()),
            Just("model.layers.0.self_attn.q_proj.lora_A.weight".to_owned()),
        ],
    ) {
        let family = IN_ONE_FILE[family];
        let scratch = tempfile::tempdir().unwrap();
        let mut all = tensors(family);
        prop_assume!(all.iter().all(|(known, _)| *known != name));
        all.push((name.clone(), ones(&[3])));
        write(scratch.path(), &config(family), all);
        let parts: Vec<&str> = name.split('.').map(|part| match part.parse::<usize>() {
            Ok(_) => "*",
            Err(_) => part,
        }).collect();
        let text = match Model::load(scratch.path()) {
            Ok(model) => model.warnings().join(" "),
            Err(error) => error.to_string(),
        };
        prop_assert!(text.contains(&format!("`{}`", parts.join("."))), "{name}: {text}");
    }
}

#[test]
fn keys_that_change_the_computation_are_refused_where_they_are_not_read() {
    for (family, key, value) in [
        ("gpt2", "rope_scaling", json!({ "type": "linear", "factor": 2.0 })),
        ("mistral", "attention_bias", json!(true)),
        ("qwen2", "mlp_bias", json!(true)),
        ("llama", "sliding_window", json!(64)),
        ("llama", "num_local_experts", json!(8)),
        ("glm", "logits_scaling", json!(8.0)),
        ("bert", "num_key_value_heads", json!(1)),
        ("glm-130b", "tie_word_embeddings", json!(false)),
        ("llama", "query_pre_attn_scalar", json!(5)),
    ] {
        let mut json = config(family);
        json[key] = value;
        let error = Config::from_json(&json).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains("does not read"), "{family}: {error}");
        // The value that changes nothing.
        json[key] = Value::Null;
        assert!(Config::from_json(&json).is_ok(), "{family} {key}");
    }
    let mut json = config("llama");
    json["rope_parameters"] = json!({ "rope_type": "default", "rope_theta": 1e4, "odd": 3 });
    assert_eq!(Config::unread_keys(&json), ["`rope_parameters.odd` = 3"]);
}

#[test]
fn a_head_that_differs_from_the_embedding_is_not_tied() {
    let scratch = tempfile::tempdir().unwrap();
    for (family, head, embedding) in [
        ("gpt2", "lm_head.weight", "transformer.wte.weight"),
        ("gemma3", "lm_head.weight", "model.embed_tokens.weight"),
    ] {
        let plain = Model::load(&golden(family)).unwrap();
        let (config, all) = (config(family), tensors(family));
        let table = all.iter().find(|(name, _)| name == embedding).unwrap().1.clone();
        let with_head = |name: &str, value: Tensor| {
            let mut all = tensors(family);
            all.push((head.to_owned(), value));
            let dir = scratch.path().join(format!("{family}-{name}"));
            write(&dir, &config, all);
            Model::load(&dir).unwrap()
        };
        let equal = with_head("equal", table.duplicate().unwrap());
        assert_eq!(logits(&equal), logits(&plain));
        assert_eq!(equal.warnings(), [""; 0]);
        assert!(equal.params().get(head).is_none());
        let other = with_head("other", table.scale(2.0).unwrap());
        assert!(other.params().get(head).is_some());
        assert_ne!(logits(&other), logits(&plain), "{family}");
    }
}

#[test]
fn quantised_weights_are_refused_by_name() {
    let scratch = tempfile::tempdir().unwrap();
    let mut json = config("llama");
    json["quantization_config"] = json!({ "quant_method": "fp8" });
    write(scratch.path(), &json, tensors("llama"));
    let error = error_of(scratch.path());
    assert!(error.contains("quantization_config (fp8)"), "{error}");
    for ending in ["weight_scale_inv", "weight_scale", "qzeros", "weight.absmax", "SCB"] {
        let mut all = tensors("llama");
        all.push((format!("model.layers.0.self_attn.q_proj.{ending}"), ones(&[1])));
        write(scratch.path(), &config("llama"), all);
        let error = error_of(scratch.path());
        assert!(error.contains("quantised") && error.contains(ending), "{error}");
    }
}

#[test]
fn names_in_wrappers_are_those_of_the_model() {
    let scratch = tempfile::tempdir().unwrap();
    for family in ["llama", "gpt2"] {
        let want = logits(&Model::load(&golden(family)).unwrap());
        for wrapper in ["_orig_mod.", "module.", "module._orig_mod.", "base_model.model.", "model."]
        {
            let all = tensors(family).into_iter();
            let all = all.map(|(name, value)| (format!("{wrapper}{name}"), value)).collect();
            write(scratch.path(), &config(family), all);
            let model = Model::load(scratch.path()).unwrap();
            assert_eq!(logits(&model), want, "{wrapper}");
            assert_eq!(model.warnings(), [""; 0], "{wrapper}");
        }
    }
}

#[test]
fn a_decoder_without_a_head_gives_hidden_states_and_names_the_head() {
    let scratch = tempfile::tempdir().unwrap();
    let hidden = |model: &Model| {
        let tokens = Tokens::new(&[5, 6, 7, 8], 1, 0).unwrap();
        no_grad(|| model.hidden(&tokens).unwrap().to_vec())
    };
    for (family, prefix) in
        [("llama", "model."), ("qwen3", "model."), ("chatglm2-6b", "transformer.")]
    {
        let whole = Model::load(&golden(family)).unwrap();
        let bare = |(name, value): (String, Tensor)| {
            (name.strip_prefix(prefix).map(str::to_owned).unwrap_or(name), value)
        };
        let all = tensors(family).into_iter().map(bare);
        let all = all.filter(|(name, _)| name != "lm_head.weight" && name != "output_layer.weight");
        let mut json = config(family);
        json["tie_word_embeddings"] = false.into();
        write(scratch.path(), &json, all.collect());
        let model = Model::load(scratch.path()).unwrap();
        assert_eq!(hidden(&model), hidden(&whole), "{family}");
        let error = model.check_causal("generating").unwrap_err().to_string();
        assert!(error.contains("hold no language-model head"), "{error}");
        // A copy has no head either, and its class says so.
        let copy = scratch.path().join("copy");
        model.save(&copy).unwrap();
        let class = read_json(&copy.join("config.json")).unwrap()["architectures"][0].clone();
        assert!(class.as_str().unwrap().ends_with("Model"), "{class}");
        assert_eq!(hidden(&Model::load(&copy).unwrap()), hidden(&whole));
    }
}

#[test]
fn the_file_that_the_index_names_holds_the_tensor() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let want = logits(&Model::load(&golden("llama")).unwrap());
    let all = tensors("llama");
    let (norm, _) = all.iter().find(|(name, _)| name == "model.norm.weight").unwrap().clone();
    let index = |file_of: &dyn Fn(&str) -> &'static str| {
        let map: serde_json::Map<_, _> =
            tensors("llama").iter().map(|(n, _)| (n.clone(), file_of(n).into())).collect();
        json!({ "weight_map": map })
    };
    write_json(&dir.join("config.json"), &config("llama")).unwrap();
    // The second file has another norm, and a tensor of nobody.
    let (first, second): (Named, Named) =
        all.into_iter().partition(|(name, _)| !name.starts_with("model.layers.1."));
    let mut second = second;
    second.push((norm, ones(&[64]).scale(9.0).unwrap()));
    second.push(("stray.weight".to_owned(), ones(&[2])));
    write_weights(&dir.join("a.safetensors"), first);
    write_weights(&dir.join("b.safetensors"), second);
    let path = dir.join("model.safetensors.index.json");
    let by_layer = |name: &str| {
        if name.starts_with("model.layers.1.") { "b.safetensors" } else { "a.safetensors" }
    };
    write_json(&path, &index(&by_layer)).unwrap();
    let model = Model::load(dir).unwrap();
    assert_eq!(logits(&model), want);
    let warnings = model.warnings().join(" ");
    assert!(warnings.contains("`stray.weight` in b.safetensors"), "{warnings}");
    assert!(warnings.contains("`model.norm.weight` in b.safetensors"), "{warnings}");
    // A tensor that is not where the index says.
    write_json(&path, &index(&|_| "a.safetensors")).unwrap();
    let error = error_of(dir);
    assert!(error.contains("a.safetensors holds `model.layers.1."), "{error}");
    write_json(
        &path,
        &index(&|n| if n == "lm_head.weight" { "c.safetensors" } else { by_layer(n) }),
    )
    .unwrap();
    let error = error_of(dir);
    assert!(error.contains("missing: c.safetensors"), "{error}");
}

#[test]
fn weight_files_that_are_not_read_are_named() {
    let scratch = tempfile::tempdir().unwrap();
    write(scratch.path(), &config("llama"), tensors("llama"));
    fs::write(scratch.path().join("adapter_model.safetensors"), "x").unwrap();
    fs::write(scratch.path().join("pytorch_model.bin"), "x").unwrap();
    let warnings = Model::load(scratch.path()).unwrap().warnings();
    assert_eq!(
        warnings,
        ["weight files of the folder that are not read: adapter_model.safetensors"]
    );
}

#[test]
fn keys_of_a_gguf_file_are_read_refused_or_named() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("m.gguf");
    let model = Model::load(&golden("llama")).unwrap();
    let written = |key: &str, value: f32| {
        let mut tokenizer = Metadata::default();
        tokenizer.set(key, value);
        let options = GgufOptions {
            name: "golden",
            file_type: FileType::F32,
            tokenizer,
            more: Metadata::default(),
        };
        model.save_gguf(&path, &options).unwrap();
        Model::load(&path)
    };
    assert_eq!(written("general.note", 2.0).unwrap().warnings(), [""; 0]);
    let warnings = written("llama.odd_key", 2.0).unwrap().warnings().join(" ");
    assert!(warnings.contains("`llama.odd_key` = F32(2.0)"), "{warnings}");
    let warnings = written("maker.key", 2.0).unwrap().warnings().join(" ");
    assert!(warnings.contains("`maker.key`"), "{warnings}");
    assert_eq!(written("llama.logit_scale", 1.0).unwrap().warnings(), [""; 0]);
    let error = written("llama.logit_scale", 2.0).err().unwrap().to_string();
    assert!(error.contains("llama.logit_scale is F32(2.0)"), "{error}");
}

/// A decoder's classifier, as `transformers` writes it.
fn classifier(dir: &Path, more: &Value) {
    let all = tensors("llama").into_iter().filter(|(name, _)| name != "lm_head.weight");
    let score: Vec<f32> = (0..3 * 64).map(|i| ((i * 37 % 19) as f32 - 9.0) / 20.0).collect();
    let score = ("score.weight".to_owned(), Tensor::from_slice(&score, [3, 64]).unwrap());
    let mut json = config("llama");
    json["architectures"] = json!(["LlamaForSequenceClassification"]);
    json["id2label"] = json!({ "0": "c", "1": "a", "2": "b" });
    json["pad_token_id"] = 0.into();
    json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    write(dir, &json, all.chain([score]).collect());
}

#[test]
fn a_classifier_of_transformers_reads_the_last_token_before_padding() {
    let scratch = tempfile::tempdir().unwrap();
    classifier(scratch.path(), &json!({}));
    let found = Classifier::load(scratch.path()).unwrap();
    assert_eq!(found.labels(), ["c", "a", "b"]);
    assert!(!found.ends_texts());
    assert_eq!(found.model().warnings(), [""; 0]);
    let logits = |ids: &[i32]| {
        let end = Tensor::from_ids(&[ids.len() as i32 - 1], [1]).unwrap();
        let tokens = Tokens::new(ids, 1, 0).unwrap();
        no_grad(|| found.logits(&tokens, &end).unwrap().to_vec())
    };
    let want = logits(&[5, 6, 7]);
    for (padded, at) in [(logits(&[5, 6, 7, 0]), 1), (logits(&[5, 6, 7, 0, 0]), 2)] {
        let close = padded.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(close, "{at}: {padded:?} {want:?}");
    }
    assert_ne!(logits(&[5, 6]), want);
    // A copy keeps the rule.
    let copy = scratch.path().join("copy");
    found.save(&copy).unwrap();
    assert!(!Classifier::load(&copy).unwrap().ends_texts());
}

#[test]
fn heads_that_choose_no_single_label_are_refused_by_name() {
    let scratch = tempfile::tempdir().unwrap();
    for (more, says) in [
        (json!({ "problem_type": "regression" }), "problem_type is regression"),
        (json!({ "problem_type": "multi_label_classification" }), "multi_label_classification"),
        (json!({ "architectures": ["LlamaForTokenClassification"] }), "ForTokenClassification"),
    ] {
        classifier(scratch.path(), &more);
        let error = Classifier::load(scratch.path()).err().unwrap().to_string();
        assert!(error.contains(says), "{error}");
    }
}
