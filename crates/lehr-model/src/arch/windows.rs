//! Sliding windows per block, from `layer_types` and `sliding_window` of a file.

use crate::{Error, Result};

/// The `layer_types` entry of a block without a window.
pub(super) const FULL: &str = "full_attention";
/// The `layer_types` entry of a block with a window.
pub(super) const SLIDING: &str = "sliding_attention";

/// Returns the window of block `layer` from the `layer_types` of a file.
pub(super) fn window(
    layer_types: &[String],
    layer: usize,
    sliding_window: Option<usize>,
) -> Result<Option<usize>> {
    match (layer_types.get(layer).map(String::as_str), sliding_window) {
        // `attention` is an older name of `full_attention`.
        (Some(FULL | "attention"), _) => Ok(None),
        (Some(SLIDING), Some(window)) => Ok(Some(window)),
        (Some(SLIDING), None) => {
            let expected = "a number of tokens, because layer_types has sliding_attention";
            Err(Error::config("sliding_window", "null or switched off", expected))
        }
        (Some(other), _) => {
            Err(Error::config("layer_types", other, format!("{FULL} or {SLIDING}")))
        }
        (None, _) => {
            let found = format!("of {} entries", layer_types.len());
            Err(Error::config("layer_types", found, "as many as num_hidden_layers"))
        }
    }
}

/// Checks that no window is 0, and that `layer_types` has one known name per block.
pub(super) fn check_windows(
    layer_types: Option<&[String]>,
    n_layers: usize,
    sliding_window: Option<usize>,
) -> Result<()> {
    if sliding_window == Some(0) {
        return Err(Error::config("sliding_window", 0, "at least 1"));
    }
    let Some(layer_types) = layer_types else { return Ok(()) };
    if layer_types.len() != n_layers {
        let found = format!("of {} entries", layer_types.len());
        return Err(Error::config("layer_types", found, format!("num_hidden_layers = {n_layers}")));
    }
    (0..n_layers).try_for_each(|layer| window(layer_types, layer, sliding_window).map(drop))
}
