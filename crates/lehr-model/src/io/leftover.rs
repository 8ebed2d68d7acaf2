//! Tensors that a model does not use: which of them are harmless, and how the others are named.

use std::collections::BTreeMap;

use crate::{Error, Result};

/// Endings of tensors that change no result, with the reason.
const HARMLESS: &[(&str, &[&str])] = &[
    (
        "rotary frequencies, which are computed from the configuration",
        &["rotary_emb.inv_freq", "rotary_pos_emb.inv_freq", "rope_freqs.weight"],
    ),
    (
        "positions and token types that count up or are 0",
        &["embeddings.position_ids", "embeddings.token_type_ids"],
    ),
    ("the value of masked scores in old GPT-2 files", &["attn.masked_bias"]),
    (
        "BERT's head for pairs of sentences, which no command asks for",
        &["cls.seq_relationship.weight", "cls.seq_relationship.bias"],
    ),
];

/// Endings of tensors that belong to a quantised matrix.
const QUANTISED: &[&str] = &[
    ".qweight",
    ".qzeros",
    ".scales",
    ".g_idx",
    ".weight_scale",
    ".weight_scale_inv",
    ".weight_scale_2",
    ".weight_packed",
    ".weight_zero_point",
    ".input_scale",
    ".absmax",
    ".quant_map",
    ".nested_absmax",
    ".nested_quant_map",
    ".SCB",
    ".codebooks",
];

/// Parts of names that belong to an adapter beside its base.
const ADAPTERS: &[&str] = &[".lora_A.", ".lora_B.", ".lora_magnitude_vector.", ".base_layer."];

/// Returns whether a tensor changes no result.
pub(crate) fn is_harmless(name: &str, shape: &[usize]) -> bool {
    // The causal mask of old GPT-2 files has four dimensions, a bias one.
    let is_mask = name.ends_with("attn.bias") && shape.len() == 4;
    is_mask || HARMLESS.iter().any(|(_, ends)| ends.iter().any(|end| name.ends_with(end)))
}

/// Refuses tensors that show that the others are not the weights themselves.
///
/// # Errors
/// If a matrix is quantised or has an adapter beside it.
pub(crate) fn refuse<'a>(names: impl Iterator<Item = &'a str>) -> Result<()> {
    let (mut quantised, mut adapters) = (Vec::new(), Vec::new());
    for name in names {
        let ends = |end: &&str| name.ends_with(*end) || Some(name) == end.strip_prefix('.');
        if QUANTISED.iter().any(ends) || name.contains(".quant_state.") {
            quantised.push(name.to_owned());
        } else if ADAPTERS.iter().any(|part| name.contains(part)) {
            adapters.push(name.to_owned());
        }
    }
    let refused = |what: &str, names: &[String], expected: &str, hint: &str| {
        let found = format!("the weights {what}: {}", grouped(names));
        Err(Error::Unsupported { found, expected: expected.to_owned(), hint: hint.to_owned() })
    };
    if !quantised.is_empty() {
        return refused(
            "are quantised",
            &quantised,
            "weights in f32, f16 or bf16, or a GGUF file",
            "use the model's unquantised files or a GGUF file, and quantise with --weights or \
             lehr convert",
        );
    }
    if !adapters.is_empty() {
        return refused(
            "hold adapters beside their base",
            &adapters,
            "one matrix per layer",
            "merge the adapters first, with merge_and_unload of PEFT",
        );
    }
    Ok(())
}

/// Describes the tensors that a model does not use; `None` if there are none.
pub(crate) fn describe(unused: &[String]) -> Option<String> {
    let n = unused.len();
    let (are, what) = if n == 1 { ("is", "tensor") } else { ("are", "tensors") };
    (n > 0).then(|| {
        format!("{n} {what} of the weights {are} not used by the model: {}", grouped(unused))
    })
}

/// Lists names by pattern, with `*` for numbers, and how many have it.
fn grouped(names: &[String]) -> String {
    /// Patterns shown.
    const SHOWN: usize = 24;
    let mut patterns = BTreeMap::<String, usize>::new();
    for name in names {
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        let part = |part| if is_number(part) { "*" } else { part };
        let pattern: Vec<_> = name.split('.').map(part).collect();
        *patterns.entry(pattern.join(".")).or_default() += 1;
    }
    let more = patterns.len().saturating_sub(SHOWN);
    let shown = patterns.iter().take(SHOWN).map(|(pattern, n)| match n {
        1 => format!("`{pattern}`"),
        n => format!("`{pattern}` ({n})"),
    });
    let mut list = shown.collect::<Vec<_>>().join(", ");
    if more > 0 {
        list += &format!(" and {more} more patterns");
    }
    list
}
