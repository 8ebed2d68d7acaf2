//! Names of tensors without what training programs wrap around a model.

/// Parts that `torch.compile`, FSDP and activation checkpointing put anywhere into a name.
const INSIDE: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// Prefixes of whole checkpoints: of `DataParallel`, of PEFT, and of sentence-transformers.
const BEFORE: [&str; 4] = ["module.", "base_model.model.", "0.auto_model.", "auto_model."];

/// The outermost parts of the families' names, which may follow one more `model.`.
const MODELS: [&str; 6] = [
    "model.model.",
    "model.lm_head.",
    "model.transformer.",
    "model.bert.",
    "model.cls.",
    "model.score.",
];

/// Returns the names of one checkpoint without wrappers, in the same order; `None` if there are
/// none.
pub(super) fn unwrapped(names: &[&str]) -> Option<Vec<String>> {
    let inner = |name: &str| {
        let parts: Vec<&str> = name.split('.').filter(|part| !INSIDE.contains(part)).collect();
        parts.join(".")
    };
    let mut found: Vec<String> = names.iter().map(|name| inner(name)).collect();
    while let Some(prefix) = wrapper(&found) {
        for name in &mut found {
            name.drain(..prefix.len());
        }
    }
    let is_wrapped = found.iter().zip(names).any(|(found, name)| found != name);
    is_wrapped.then_some(found)
}

/// Returns the prefix that all names share because of a wrapper.
fn wrapper(names: &[String]) -> Option<&'static str> {
    let all = |prefix: &str| !names.is_empty() && names.iter().all(|n| n.starts_with(prefix));
    if let Some(prefix) = BEFORE.into_iter().find(|prefix| all(prefix)) {
        return Some(prefix);
    }
    let twice = names.iter().any(|name| MODELS.iter().any(|start| name.starts_with(start)));
    (twice && all("model.")).then_some("model.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrappers_of_training_programs_are_removed() {
        let plain = ["model.embed_tokens.weight", "lm_head.weight", "model.layers.0.norm.weight"];
        assert_eq!(unwrapped(&plain), None);
        for wrap in ["_orig_mod.", "module.", "module._orig_mod.", "base_model.model.", "model."] {
            let wrapped: Vec<String> = plain.iter().map(|name| format!("{wrap}{name}")).collect();
            let views: Vec<&str> = wrapped.iter().map(String::as_str).collect();
            assert_eq!(unwrapped(&views).unwrap(), plain, "{wrap}");
        }
        let inside = ["model.layers.0._orig_mod.norm.weight", "lm_head.weight"];
        assert_eq!(unwrapped(&inside).unwrap()[0], "model.layers.0.norm.weight");
        // The model without a head has one `model.` or none.
        assert_eq!(unwrapped(&["model.embed_tokens.weight", "model.norm.weight"]), None);
        assert_eq!(unwrapped(&["embed_tokens.weight", "norm.weight"]), None);
    }
}
