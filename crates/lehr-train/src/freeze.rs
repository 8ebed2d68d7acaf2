//! Parameters that are not trained.

use lehr_tensor::ParamStore;

use crate::{Error, Result};

/// Freezes the parameters whose names fit one of `patterns`, in which `*` stands for any text, and
/// says how much is left to train; `None` without patterns.
///
/// # Errors
/// If a pattern fits no parameter, or nothing is left to train.
pub(crate) fn freeze(params: &ParamStore, patterns: &[String]) -> Result<Option<String>> {
    if patterns.is_empty() {
        return Ok(None);
    }
    let all = params.params();
    for pattern in patterns {
        if !all.iter().any(|p| fits(pattern, p.name())) {
            let names: Vec<_> = all.iter().take(3).map(|p| format!("`{}`", p.name())).collect();
            return Err(Error::Setting {
                faults: format!(
                    "train.freeze has `{pattern}`, which fits none of the {} parameters: {}, …",
                    all.len(),
                    names.join(", ")
                ),
            });
        }
    }
    for param in all {
        param.set_trainable(!patterns.iter().any(|pattern| fits(pattern, param.name())));
    }
    let trained: Vec<_> = all.iter().filter(|p| p.is_trainable()).collect();
    if trained.is_empty() {
        let faults = "train.freeze fits all parameters, so nothing is left to train".to_owned();
        return Err(Error::Setting { faults });
    }
    let n: usize = trained.iter().map(|p| p.shape().n_elements()).sum();
    let n_all = params.n_values();
    Ok(Some(format!("{n} of {n_all} weights are trained, {} are frozen", n_all - n)))
}

/// Whether the whole of `name` fits `pattern`.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(start) else { return false };
    // The star may stand for any of the ends of the name.
    (0..=name.len()).filter(|at| name.is_char_boundary(*at)).any(|at| fits(rest, &name[at..]))
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn a_star_stands_for_any_text() {
        let name = "model.layers.11.mlp.up_proj.weight";
        for pattern in [name, "*", "model.*", "*.weight", "model.layers.*.mlp.*", "*1*1*"] {
            assert!(fits(pattern, name), "{pattern}");
        }
        for pattern in ["", "model", "layers.*", "*.bias", "model.layers.1.*", "*2*"] {
            assert!(!fits(pattern, name), "{pattern}");
        }
    }
}
