//! The `config.json` of a model that was made from another: it keeps what lehr does not own.

use serde_json::Value;

use crate::io::RawObject;
use crate::{Config, Error, Result};

/// Settings of the stored form of the weights. A copy has plain floats.
const OF_QUANTISATION: [&str; 2] = ["quantization_config", "compression_config"];

/// Keys of a task head, which a model without one does not keep.
const OF_CLASSIFIER: [&str; 4] = ["id2label", "label2id", "num_labels", "problem_type"];

/// A `config.json` made from another.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    /// Its contents.
    pub json: RawObject,
    /// Keys of the other file that it does not have.
    pub left_out: Vec<String>,
}

impl ConfigFile {
    /// Returns `source`, the text of a `config.json`, with the settings of `own`, the model as it
    /// is now. Keys of `source` keep their text unless the model was changed. `own` decides the
    /// element type, and `source` loses its quantisation. Of a model with several parts (text and
    /// images), the result has the settings of the text.
    ///
    /// # Errors
    /// If `source` is not the configuration of a known family.
    pub fn like(source: &str, own: &Value) -> Result<Self> {
        let fault = |found: String| Error::config("config.json", found, "a JSON object");
        let mut json = RawObject::parse(source).map_err(fault)?;
        let value: Value = serde_json::from_str(source).map_err(|e| fault(e.to_string()))?;
        let mut plain = value.clone();
        if let Some(map) = plain.as_object_mut() {
            OF_QUANTISATION.iter().for_each(|key| drop(map.remove(*key)));
        }
        let read = Config::from_json(&plain)?.to_json();
        let mut left_out = Vec::new();
        if value.get("model_type") != own.get("model_type") && value["text_config"].is_object() {
            let text = json.text("text_config").unwrap_or_default().to_owned();
            let whole = std::mem::replace(&mut json, RawObject::parse(&text).map_err(fault)?);
            for key in whole.keys().filter(|key| !["text_config", "dtype"].contains(key)) {
                match own.get(key).filter(|value| !value.is_null()) {
                    Some(value) => json.set(key, value),
                    None => left_out.push(key.to_owned()),
                }
            }
            json.remove("architectures");
        }
        for (key, value) in own.as_object().into_iter().flatten() {
            // The class says which heads the weights have, and a copy has all of them.
            let is_kept = key == "architectures" && json.text(key).is_some();
            let is_missing = is_identity(key) && json.text(key).is_none();
            if (read.get(key) != Some(value) && !is_kept) || is_missing {
                json.set(key, value);
            }
        }
        let dtype = own.get("dtype").cloned().unwrap_or_else(|| "float32".into());
        // transformers 4 writes the one, transformers 5 the other; both read both.
        let known: Vec<&str> =
            ["torch_dtype", "dtype"].into_iter().filter(|key| value.get(key).is_some()).collect();
        json.remove("dtype");
        for key in if known.is_empty() { &["dtype"][..] } else { &known } {
            json.set(key, &dtype);
        }
        for key in OF_QUANTISATION {
            if json.remove(key) {
                left_out.push(key.to_owned());
            }
        }
        Ok(Self { json, left_out })
    }

    /// Returns the file for a model that was trained further, perhaps for another task: its class
    /// and labels are those of `own`.
    ///
    /// # Errors
    /// As [`ConfigFile::like`].
    pub fn of_trained(source: &str, own: &Value) -> Result<Self> {
        let mut file = Self::like(source, own)?;
        if let Some(class) = own.get("architectures") {
            file.json.set("architectures", class);
        }
        for key in OF_CLASSIFIER.into_iter().filter(|key| own.get(key).is_none()) {
            file.json.remove(key);
        }
        Ok(file)
    }
}

/// Whether a reader needs the key to choose the model.
fn is_identity(key: &str) -> bool {
    ["model_type", "architectures"].contains(&key)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn golden(name: &str) -> String {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
        std::fs::read_to_string(format!("{dir}/{name}/config.json")).unwrap()
    }

    fn own(source: &str) -> Value {
        Config::from_json(&serde_json::from_str(source).unwrap()).unwrap().to_json()
    }

    #[test]
    fn settings_that_were_not_changed_keep_their_text() {
        for name in ["glm", "glm4", "llama", "gemma3", "gpt2", "bert", "chatglm2-6b", "qwen3"] {
            let source = golden(name);
            let file = ConfigFile::like(&source, &own(&source)).unwrap();
            let mut want = RawObject::parse(&source).unwrap();
            for key in ["dtype", "torch_dtype"] {
                if want.remove(key) {
                    want.set(key, &"float32".into());
                }
            }
            let mut found = file.json.clone();
            if want.text("dtype").is_none() && want.text("torch_dtype").is_none() {
                assert!(found.remove("dtype"));
            }
            for key in want.keys() {
                assert_eq!(found.text(key), want.text(key), "{name}: {key}");
            }
            let added: Vec<_> = found.keys().filter(|key| want.text(key).is_none()).collect();
            assert!(added.iter().all(|key| is_identity(key)), "{name}: {added:?}");
            assert_eq!(file.left_out, Vec::<String>::new());
        }
    }

    #[test]
    fn changed_settings_and_the_form_of_the_weights_are_the_new_models() {
        let mut own = own(&golden("llama"));
        let mut source = RawObject::parse(&golden("llama")).unwrap();
        source.set("quantization_config", &json!({"quant_method": "gptq"}));
        source.set("torch_dtype", &"float16".into());
        let source = source.to_text();
        own["dtype"] = "bfloat16".into();
        own["tie_word_embeddings"] = (own["tie_word_embeddings"] != true).into();
        let file = ConfigFile::like(&source, &own).unwrap();
        assert_eq!(file.json.get("torch_dtype"), Some("bfloat16".into()));
        assert_eq!(file.json.get("tie_word_embeddings"), own.get("tie_word_embeddings").cloned());
        assert_eq!(file.left_out, ["quantization_config"]);
    }

    #[test]
    fn a_model_trained_for_another_task_has_its_class_and_labels() {
        let mut source = RawObject::parse(&golden("llama")).unwrap();
        source.set("architectures", &json!(["LlamaForSequenceClassification"]));
        source.set("id2label", &json!({"0": "a", "1": "b"}));
        let source = source.to_text();
        let own = own(&source);
        let copy = ConfigFile::like(&source, &own).unwrap().json;
        assert_eq!(copy.get("architectures"), Some(json!(["LlamaForSequenceClassification"])));
        assert_eq!(copy.get("id2label"), Some(json!({"0": "a", "1": "b"})));
        let trained = ConfigFile::of_trained(&source, &own).unwrap().json;
        assert_eq!(trained.get("architectures"), own.get("architectures").cloned());
        assert_eq!(trained.get("id2label"), None);
    }

    proptest! {
        /// Whatever keys a file has besides, they are in the copy as they were.
        #[test]
        fn unknown_keys_are_kept(
            extra in proptest::collection::btree_map("x_[a-z_]{1,8}", any::<f64>().prop_filter(
                "JSON has finite numbers", |v| v.is_finite()), 0..6),
        ) {
            let golden = golden("glm");
            let more: String = extra.iter().map(|(k, v)| format!("\"{k}\": {v:e},\n")).collect();
            let source = golden.replacen('{', &format!("{{{more}"), 1);
            let fits = extra.values().all(|v| v.abs() <= f64::from(f32::MAX));
            match ConfigFile::like(&source, &own(&golden)) {
                Ok(file) => for (key, value) in &extra {
                    prop_assert_eq!(file.json.text(key), Some(&*format!("{value:e}")));
                },
                // Numbers beyond f32 are refused by name.
                Err(error) => prop_assert!(!fits && error.to_string().contains("x_"), "{}", error),
            }
        }
    }
}
