//! The settings of an adapter and the names of its tensors.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value};

use super::{COPY, PREFIX};
use crate::adapt::{AdapterMethod, LoraConfig, LoraScaling};
use crate::io::{ADAPTER_CONFIG, Checkpoint};
use crate::{Error, Result};

/// Settings that change nothing of a finished adapter: how it was started and trained, for which
/// hardware, and what follows from its tensors.
const WITHOUT_EFFECT: [&str; 23] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "monteclora_config",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
];

/// Settings with an effect that lehr does not have, unless they are null, false, empty or "none".
const UNSUPPORTED: [(&str, &str); 11] = [
    ("alora_invocation_tokens", "adapters that begin within a text"),
    ("arrow_config", "mixtures of adapters"),
    ("bias", "biases that were trained beside the adapter"),
    ("kasa_config", "KaSA"),
    ("layer_replication", "layers that are repeated"),
    ("lora_bias", "biases of the adapter"),
    ("target_parameters", "adapters of parameters that are no linear layers"),
    ("trainable_token_indices", "rows of the embedding that were trained beside the adapter"),
    ("use_bdlora", "block-diagonal LoRA"),
    ("use_qalora", "QALoRA"),
    ("velora_config", "VeLoRA"),
];

/// Returns the name of a tensor without what wraps a model.
pub(super) fn inner(name: &str) -> &str {
    name.strip_prefix(PREFIX).unwrap_or(name)
}

/// Lists the tensors of whole layers.
pub(super) fn whole(tensors: &Checkpoint, settings: &Map<String, Value>) -> Vec<String> {
    let modules = settings.get("modules_to_save").and_then(Value::as_array);
    let modules: Vec<_> = modules.into_iter().flatten().filter_map(Value::as_str).collect();
    let is_whole = |name: &&str| {
        let layer = inner(name).rsplit_once('.').map_or("", |(layer, _)| layer);
        modules.iter().any(|module| is_end(layer, module))
    };
    tensors.names().filter(is_whole).map(str::to_owned).collect()
}

/// Returns whether `short` is the path `long` or its end.
pub(super) fn is_end(long: &str, short: &str) -> bool {
    long.strip_suffix(short).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Checks that lehr knows the effect of every setting.
pub(super) fn check(settings: &Map<String, Value>, path: &Path) -> Result<()> {
    let refused = |found: String, expected: &str, hint: &str| {
        let found = format!("{} has {found}", path.display());
        Err(Error::Unsupported { found, expected: expected.to_owned(), hint: hint.to_owned() })
    };
    let method = settings.get("peft_type").and_then(Value::as_str).unwrap_or("no peft_type");
    if method != "LORA" {
        let hint = "merge the adapter first, with merge_and_unload of PEFT, if its method can be";
        return refused(format!("peft_type {method}"), "LORA", hint);
    }
    let is_absent = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text == "none",
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    let read = [
        "alpha_pattern",
        "lora_alpha",
        "modules_to_save",
        "peft_type",
        "r",
        "rank_pattern",
        "use_dora",
        "use_rslora",
    ];
    for (key, value) in settings {
        if read.contains(&key.as_str()) || WITHOUT_EFFECT.contains(&key.as_str()) {
            continue;
        }
        if is_absent(value) {
            continue;
        }
        let known = UNSUPPORTED.iter().find(|(name, _)| name == key);
        let what = known.map_or("a setting that lehr does not know", |(_, what)| what);
        let hint = "merge the adapter first, with merge_and_unload of PEFT";
        return refused(format!("{key} = {value}, {what}"), "an adapter without it", hint);
    }
    Ok(())
}

/// Returns the settings of all adapted modules.
pub(super) fn layers(
    tensors: &Checkpoint,
    settings: &Map<String, Value>,
    path: &Path,
) -> Result<BTreeMap<String, AdapterMethod>> {
    let fault = |reason: String| Error::format(path, reason);
    let number = |key: &str, usual: f64| match settings.get(key) {
        None | Some(Value::Null) => Ok(usual),
        Some(value) => {
            value.as_f64().ok_or_else(|| fault(format!("{key} is {value}, expected a number")))
        }
    };
    // The defaults of PEFT.
    let (rank, alpha) = (number("r", 8.0)?, number("lora_alpha", 8.0)?);
    let scaling = match settings.get("use_rslora").and_then(Value::as_bool) {
        Some(true) => LoraScaling::RootOfRank,
        _ => LoraScaling::Rank,
    };
    let dora = settings.get("use_dora").and_then(Value::as_bool).unwrap_or(false);
    let (ranks, alphas) = (pattern(settings, "rank_pattern")?, pattern(settings, "alpha_pattern")?);
    let (mut layers, mut partners) = (BTreeMap::new(), BTreeSet::new());
    let mut lengths = BTreeSet::new();
    let whole = whole(tensors, settings);
    for name in tensors.names().filter(|name| whole.iter().all(|other| other != name)) {
        let inner = inner(name);
        if let Some(layer) = inner.strip_suffix(".lora_B.weight") {
            partners.insert(layer.to_owned());
            continue;
        }
        if let Some(layer) = inner.strip_suffix(".lora_magnitude_vector") {
            lengths.insert(layer.to_owned());
            continue;
        }
        if inner.ends_with(COPY) {
            continue;
        }
        let Some(layer) = inner.strip_suffix(".lora_A.weight") else {
            return Err(fault(format!(
                "{name} is neither lora_A.weight nor lora_B.weight of a linear layer"
            )));
        };
        let found = tensors.shape(name).unwrap_or_default().first().copied().unwrap_or(0);
        let wanted = of_layer(&ranks, layer).unwrap_or(rank);
        if found as f64 != wanted {
            return Err(fault(format!(
                "{name} has rank {found}, but {ADAPTER_CONFIG} says {wanted} (r and rank_pattern)"
            )));
        }
        let alpha = of_layer(&alphas, layer).unwrap_or(alpha) as f32;
        let config = LoraConfig { rank: found, alpha, scaling };
        let method = if dora { AdapterMethod::Dora(config) } else { AdapterMethod::Lora(config) };
        layers.insert(layer.to_owned(), method);
    }
    let whole: BTreeSet<_> = layers.keys().cloned().collect();
    if let Some(single) = whole.symmetric_difference(&partners).next() {
        return Err(fault(format!("{single} has only one of lora_A.weight and lora_B.weight")));
    }
    check_lengths(&if dora { whole } else { BTreeSet::new() }, &lengths).map_err(fault)?;
    if layers.is_empty() {
        return Err(fault("it has no tensors".to_owned()));
    }
    Ok(layers)
}

/// Checks that every layer of DoRA has lengths, and no other has. Returns what is wrong.
fn check_lengths(
    wanted: &BTreeSet<String>,
    found: &BTreeSet<String>,
) -> std::result::Result<(), String> {
    let Some(single) = wanted.symmetric_difference(found).next() else { return Ok(()) };
    let (verb, dora) = match wanted.contains(single) {
        true => ("lacks", true),
        false => ("has", false),
    };
    Err(format!(
        "{single} {verb} lora_magnitude_vector, but use_dora of {ADAPTER_CONFIG} is {dora}"
    ))
}

/// Reads a map from modules to numbers.
fn pattern(settings: &Map<String, Value>, key: &str) -> Result<Vec<(String, f64)>> {
    let refused = |found: String| Error::Unsupported {
        found: format!("{key} of {ADAPTER_CONFIG} has {found}"),
        expected: "names of modules, or the ends of their names, with a number each".to_owned(),
        hint: "merge the adapter first, with merge_and_unload of PEFT".to_owned(),
    };
    let Some(map) = settings.get(key).and_then(Value::as_object) else { return Ok(Vec::new()) };
    let mut pairs = Vec::new();
    for (name, value) in map {
        // PEFT takes them for regular expressions. Those that are more than a name are refused.
        let plain = name.strip_prefix('^').unwrap_or(name);
        if !plain.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '.') {
            return Err(refused(format!("the pattern {name:?}")));
        }
        let number = value.as_f64().ok_or_else(|| refused(format!("{name:?} = {value}")))?;
        pairs.push((name.clone(), number));
    }
    Ok(pairs)
}

/// Returns the number of the first pattern that names `layer`, or with `^` begins with it.
fn of_layer(patterns: &[(String, f64)], layer: &str) -> Option<f64> {
    let names = |pattern: &str| match pattern.strip_prefix('^') {
        Some(whole) => layer == whole,
        None => is_end(layer, pattern),
    };
    patterns.iter().find(|(pattern, _)| names(pattern)).map(|(_, number)| *number)
}
