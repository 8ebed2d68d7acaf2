//! Parameters that are not trained.

use lehr_tensor::{NamePattern, ParamStore};

use crate::{Error, Result};

/// Freezes the parameters whose names match one of `patterns`, where `*` matches any text. Returns
/// a note on how many weights are trained; `None` without patterns.
///
/// # Errors
/// If a pattern matches no parameter, or nothing is left to train.
pub(crate) fn freeze(params: &ParamStore, patterns: &[String]) -> Result<Option<String>> {
    if patterns.is_empty() {
        return Ok(None);
    }
    let setting = |faults: String| Error::Setting { faults };
    let patterns: Vec<_> = patterns.iter().map(NamePattern::new).collect();
    params.freeze_matching(&patterns).map_err(|e| setting(format!("train.freeze: {e}")))?;
    let n: usize = params.trainable().map(|p| p.shape().n_elements()).sum();
    if n == 0 {
        let faults = "train.freeze matches all parameters, so nothing is left to train";
        return Err(setting(faults.to_owned()));
    }
    let n_all = params.n_values();
    Ok(Some(format!("{n} of {n_all} weights are trained, {} are frozen", n_all - n)))
}
