//! Settings of a `tokenizer_config.json` about how a text is normalised, cut and put together.

use serde_json::{Value, json};
use tokenizers::models::ModelWrapper;
use tokenizers::{DecoderWrapper, NormalizerWrapper, Tokenizer as HfTokenizer};

use super::config::Config;

/// Settings of BERT's normaliser, and their names in `tokenizer.json`.
const OF_BERT: [(&str, &str); 3] = [
    ("do_lower_case", "lowercase"),
    ("strip_accents", "strip_accents"),
    ("tokenize_chinese_chars", "handle_chinese_chars"),
];

/// Applies the settings to the tokenizer of a `tokenizer.json`. What it cannot apply becomes a
/// warning.
///
/// # Errors
/// The library refuses the changed normaliser.
pub(super) fn apply(
    tokenizer: &mut HfTokenizer,
    config: &Config,
) -> std::result::Result<(), String> {
    let part = |value: serde_json::Result<Value>| value.unwrap_or_default();
    let mut normalizer = part(serde_json::to_value(tokenizer.get_normalizer()));
    // As in transformers, the configuration of a BERT tokenizer wins.
    if normalizer["type"] == "BertNormalizer" {
        let before = normalizer.clone();
        for (key, name) in OF_BERT {
            if !config[key].is_null() {
                normalizer[name] = config[key].clone();
            }
        }
        if normalizer != before {
            let normalizer: NormalizerWrapper =
                serde_json::from_value(normalizer).map_err(|error| error.to_string())?;
            tokenizer.with_normalizer(Some(normalizer)).map_err(|error| error.to_string())?;
        }
    } else if config["do_lower_case"] == true && !normalizer.to_string().contains("\"Lowercase\"") {
        config.warn("do_lower_case is true, but tokenizer.json keeps capitals and decides".into());
    }
    let splitter = part(serde_json::to_value(tokenizer.get_pre_tokenizer()));
    let prefix = [prefix_of(&normalizer_of(tokenizer)), prefix_of(&splitter)];
    if let (Some(wanted), Some(found)) =
        (config["add_prefix_space"].as_bool(), prefix.into_iter().flatten().next())
        && wanted != found
    {
        config.warn(format!(
            "add_prefix_space is {wanted}, but tokenizer.json says {found} and decides"
        ));
    }
    // Only the conversion of SentencePiece models reads it.
    let _ = &config["legacy"];
    decoding(tokenizer, config);
    Ok(())
}

fn normalizer_of(tokenizer: &HfTokenizer) -> Value {
    serde_json::to_value(tokenizer.get_normalizer()).unwrap_or_default()
}

/// Whether a normaliser or pre-tokeniser puts a space before a text; `None` if it has nothing to
/// say about that.
fn prefix_of(step: &Value) -> Option<bool> {
    match step["type"].as_str()? {
        "Prepend" => Some(true),
        "Metaspace" => Some(step["prepend_scheme"] != "never"),
        "ByteLevel" => step["add_prefix_space"].as_bool(),
        _ => ["normalizers", "pretokenizers"]
            .iter()
            .filter_map(|key| step[key].as_array())
            .flatten()
            .find_map(prefix_of),
    }
}

/// Reads settings of decoding, and warns of those that are not applied.
pub(super) fn decoding(tokenizer: &HfTokenizer, config: &Config) {
    // transformers ignores it for BPE, and BERT's decoder does the same.
    let is_bpe = matches!(tokenizer.get_model(), ModelWrapper::BPE(_));
    let cleans = matches!(tokenizer.get_decoder(), Some(DecoderWrapper::WordPiece(d)) if d.cleanup);
    if config["clean_up_tokenization_spaces"] == json!(true) && !is_bpe && !cleans {
        config.warn(
            "clean_up_tokenization_spaces is true, which is not used: spaces before punctuation \
             stay in decoded text"
                .into(),
        );
    }
}
