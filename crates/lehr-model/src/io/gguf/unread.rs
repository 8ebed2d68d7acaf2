//! Keys of a GGUF file that nothing reads.

use super::family::Settings;
use super::metadata::Value;
use crate::{Error, Result};

/// Beginnings of keys that change no result, with the reason.
const HARMLESS: &[(&str, &[&str])] = &[
    (
        "they describe the model, its origin and the file",
        &["general.", "quantize.", "imatrix.", "split."],
    ),
    ("lehr_infer reads them with the tokenizer and the chat template", &["tokenizer."]),
];

/// Keys of an architecture that change no result: sizes that the tensors repeat, and the pooling,
/// which `lehr embed` reads.
const HARMLESS_OF_ARCH: [&str; 8] = [
    "vocab_size",
    "pooling_type",
    "tensor_data_layout",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
    "attention.key_length_swa",
    "attention.value_length_swa",
    "rope.dimension_count_swa",
];

/// The values at which a key changes nothing.
enum Neutral {
    Off,
    One,
    On,
}

/// Keys of an architecture that change the computation in files of some family.
const COMPUTATION: &[(Neutral, &[&str])] = &[
    (
        Neutral::Off,
        &[
            "expert_count",
            "expert_used_count",
            "attention.sliding_window",
            "attention.clamp_kqv",
            "attention.max_alibi_bias",
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "use_parallel_residual",
            "ssm.state_size",
            "nextn_predict_layers",
        ],
    ),
    (
        Neutral::One,
        &[
            "logit_scale",
            "embedding_scale",
            "residual_scale",
            "attention.scale",
            "rope.scaling.attn_factor",
            "rope.scaling.yarn_ext_factor",
        ],
    ),
    (Neutral::On, &["attention.causal"]),
];

impl Neutral {
    fn accepts(&self, value: &Value) -> bool {
        let number = value.float().or_else(|| value.integer().map(|n| n as f64));
        match self {
            Self::Off => number == Some(0.0) || *value == Value::Bool(false),
            Self::One => number == Some(1.0),
            Self::On => *value == Value::Bool(true),
        }
    }

    fn expected(&self) -> &'static str {
        match self {
            Self::Off => "0 or absent: lehr does not read it in this family",
            Self::One => "1 or absent: lehr does not read it in this family",
            Self::On => "true or absent: lehr does not read it in this family",
        }
    }
}

/// Refuses keys that change the computation, and names the rest, if they were not asked for.
///
/// # Errors
/// If such a key has another value than its neutral one.
pub(super) fn check(settings: &Settings<'_>) -> Result<Vec<String>> {
    let mut unread = Vec::new();
    for (key, value) in settings.header.metadata.entries() {
        let known = HARMLESS.iter().any(|(_, starts)| starts.iter().any(|s| key.starts_with(s)));
        if known || settings.was_asked(key) {
            continue;
        }
        let name = key.strip_prefix(settings.arch).and_then(|name| name.strip_prefix('.'));
        if name.is_some_and(|name| HARMLESS_OF_ARCH.contains(&name)) {
            continue;
        }
        let neutral =
            COMPUTATION.iter().find(|(_, keys)| name.is_some_and(|name| keys.contains(&name)));
        match neutral {
            // The encoders' masks are theirs already.
            Some((Neutral::On, _)) if settings.arch == "bert" => {}
            Some((neutral, _)) if !neutral.accepts(value) => {
                return Err(Error::config(key, value.brief(), neutral.expected()));
            }
            Some(_) => {}
            None => unread.push(format!("`{key}` = {}", value.brief())),
        }
    }
    Ok(unread.is_empty().then(Vec::new).unwrap_or_else(|| {
        vec![format!("keys of the GGUF file that lehr does not read: {}", unread.join(", "))]
    }))
}
