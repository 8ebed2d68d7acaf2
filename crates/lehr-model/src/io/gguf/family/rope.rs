//! Rotary frequencies. Files hold either the parameters of a scaling or, for Llama 3.1, its result.

use std::f64::consts::TAU;

use lehr_tensor::ops::rope::frequencies::{inverse_frequencies, llama3_scaled};
use serde_json::{Map, Value as Json, json};

use super::{Keys, Settings, object};
use crate::{Error, Result};

/// Tolerance of the factors, which are stored as f32 and computed from f32 wavelengths.
const TOLERANCE: f64 = 1e-5;

/// Reads the settings of a rotation of whole heads.
pub(super) fn whole_head(file: &Settings<'_>) -> Result<Map<String, Json>> {
    let head_dim = file.head_dim()?;
    let (rotary_dim, config) = part_of_head(file)?;
    if rotary_dim != head_dim {
        let expected = format!("the width of a head, {head_dim}");
        return Err(Error::config(&file.key("rope.dimension_count"), rotary_dim, expected));
    }
    Ok(config)
}

/// Reads the number of rotated dimensions of a head and the other settings of the rotation.
pub(super) fn part_of_head(file: &Settings<'_>) -> Result<(u64, Map<String, Json>)> {
    let rotary_dim = match file.integer("rope.dimension_count")? {
        Some(dim) => dim,
        None => file.head_dim()?,
    };
    let theta = file.float("rope.freq_base")?.unwrap_or(10_000.0);
    let mut config = object([("rope_theta", theta.into())]);
    let scaling = match &file.rope_factors {
        Some(factors) => Some(llama3(theta, factors)?),
        None => scaling(file)?,
    };
    if let Some(scaling) = scaling {
        config.insert("rope_scaling".to_owned(), scaling);
    }
    Ok((rotary_dim, config))
}

/// Writes base and scaling of the rotation in a `config.json`, in any of its spellings.
pub(super) fn metadata(keys: &mut Keys<'_>) -> Result<()> {
    let config = keys.config();
    let in_use = |map: &&Json| map.as_object().is_some_and(|map| !map.is_empty());
    let parameters = config.get("rope_scaling").filter(in_use).or(config.get("rope_parameters"));
    // Families with two kinds of blocks have a map for each.
    let nested = parameters.and_then(|map| map.get("full_attention"));
    let parameters = nested.or(parameters).filter(in_use).unwrap_or(&Json::Null);
    let theta = parameters["rope_theta"].as_f64().or(keys.float("rope_theta")?);
    let theta = theta.unwrap_or(10_000.0);
    keys.set("rope.freq_base", theta as f32);
    let need = |key: &str| {
        let value = parameters[key].as_f64().or(config[key].as_f64()).filter(|v| *v > 0.0);
        value.ok_or_else(|| Error::config(key, &parameters[key], "a positive number"))
    };
    let kind = parameters.get("rope_type").or(parameters.get("type"));
    match kind.and_then(Json::as_str) {
        None | Some("default") => {}
        Some("linear") => {
            keys.set("rope.scaling.type", "linear");
            keys.set("rope.scaling.factor", need("factor")? as f32);
        }
        Some("yarn") => {
            keys.set("rope.scaling.type", "yarn");
            keys.set("rope.scaling.factor", need("factor")? as f32);
            let original = need(ORIGINAL)? as u32;
            keys.set("rope.scaling.original_context_length", original);
            for (ggml, ours) in YARN {
                if let Some(value) = parameters[ours].as_f64() {
                    keys.set(ggml, value as f32);
                }
            }
        }
        Some("llama3") => {
            let (factor, low, high) =
                (need("factor")?, need("low_freq_factor")?, need("high_freq_factor")?);
            let plain = inverse_frequencies(theta, keys.head_dim()? as usize);
            let scaled = llama3_scaled(&plain, factor, low, high, need(ORIGINAL)?);
            let factors = plain.iter().zip(&scaled).map(|(plain, scaled)| (plain / scaled) as f32);
            keys.set_rope_factors(factors.collect());
        }
        Some(other) => {
            let expected = "default, linear, yarn or llama3, which GGUF has";
            return Err(Error::config("rope_type", other, expected));
        }
    }
    Ok(())
}

const ORIGINAL: &str = "original_max_position_embeddings";

/// Further numbers of YaRN, by their names in files and in `config.json`.
const YARN: [(&str, &str); 3] = [
    ("rope.scaling.yarn_attn_factor", "attention_factor"),
    ("rope.scaling.yarn_beta_fast", "beta_fast"),
    ("rope.scaling.yarn_beta_slow", "beta_slow"),
];

fn scaling(file: &Settings<'_>) -> Result<Option<Json>> {
    // Old files have only the factor.
    let factor = match file.float("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => file.float("rope.scale_linear")?,
    };
    let kind = file.string("rope.scaling.type")?;
    let missing = || Error::config("rope.scaling.factor", "missing", "a float");
    match kind.or(factor.map(|_| "linear")) {
        None | Some("none") => Ok(None),
        Some("linear") => {
            let factor = factor.ok_or_else(missing)?;
            Ok((factor != 1.0).then(|| json!({ "rope_type": "linear", "factor": factor })))
        }
        Some("yarn") => {
            let mut yarn = json!({
                "rope_type": "yarn",
                "factor": factor.ok_or_else(missing)?,
                "original_max_position_embeddings":
                    file.need_integer("rope.scaling.original_context_length")?,
            });
            for (ggml, ours) in YARN {
                if let Some(value) = file.float(ggml)? {
                    yarn[ours] = value.into();
                }
            }
            Ok(Some(yarn))
        }
        Some(other) => Err(Error::config("rope.scaling.type", other, "none, linear or yarn")),
    }
}

/// Recovers the parameters of Llama 3.1's scaling from the `factors` that divide the plain
/// frequencies.
///
/// Only ratios of the three contexts matter, so `low_freq_factor` can be 1, as in all published
/// models.
fn llama3(theta: f64, factors: &[f32]) -> Result<Json> {
    let plain = inverse_frequencies(theta, 2 * factors.len());
    let factor = factors.iter().fold(1.0f64, |most, f| most.max(f64::from(*f)));
    let fits = |high: f64, original: f64| {
        let scaled = llama3_scaled(&plain, factor, 1.0, high, original);
        let quotients = plain.iter().zip(&scaled).map(|(plain, scaled)| plain / scaled);
        quotients
            .zip(factors)
            .all(|(want, found)| (want - f64::from(*found)).abs() <= TOLERANCE * want)
    };
    let usual = (4..=20).map(|power| (4.0, f64::from(1 << power)));
    let found =
        usual.chain(ramp(&plain, factors, factor)).find(|(high, original)| fits(*high, *original));
    let Some((high, original)) = found else {
        let found = format!("{} factors up to {factor}", factors.len());
        return Err(Error::config("rope_freqs.weight", found, "factors of Llama 3.1's scaling"));
    };
    Ok(json!({
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": high,
        "original_max_position_embeddings": original as u64,
    }))
}

/// Computes `high_freq_factor` and the original context from two frequencies on the ramp, where
/// `(C/λ − 1) / (high − 1) = (1/f_i − 1/f) / (1 − 1/f)`.
fn ramp(plain: &[f64], factors: &[f32], factor: f64) -> Option<(f64, f64)> {
    let on_ramp = plain.iter().zip(factors).filter_map(|(w, f)| {
        let f = f64::from(*f);
        let between = f > 1.0 + TOLERANCE && f < factor * (1.0 - TOLERANCE);
        between.then(|| (w / TAU, (1.0 / f - 1.0 / factor) / (1.0 - 1.0 / factor)))
    });
    let points: Vec<(f64, f64)> = on_ramp.collect();
    let ((x0, s0), (x1, s1)) = (*points.first()?, *points.last()?);
    // s = a x + b with a = C / (high − 1) and b = −1 / (high − 1).
    let a = (s1 - s0) / (x1 - x0);
    let b = s0 - a * x0;
    let high = 1.0 - 1.0 / b;
    let original = (a * (high - 1.0)).round();
    (high > 1.0 && original >= 1.0 && original.is_finite()).then_some((high, original))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_the_scaling_are_found_from_its_factors() {
        for (theta, dim, factor, high, original) in [
            (500_000.0, 128, 8.0, 4.0, 8192.0),
            (500_000.0, 64, 32.0, 4.0, 8192.0),
            (500_000.0, 16, 8.0, 4.0, 32.0),
            (10_000.0, 64, 4.0, 2.5, 3000.0),
        ] {
            let plain = inverse_frequencies(theta, dim);
            let scaled = llama3_scaled(&plain, factor, 1.0, high, original);
            let factors: Vec<f32> =
                plain.iter().zip(&scaled).map(|(p, s)| (p / s) as f32).collect();
            let found = llama3(theta, &factors).unwrap();
            let number = |key: &str| found[key].as_f64().unwrap();
            let again = llama3_scaled(
                &plain,
                number("factor"),
                number("low_freq_factor"),
                number("high_freq_factor"),
                number("original_max_position_embeddings"),
            );
            for (want, found) in scaled.iter().zip(&again) {
                assert!((want - found).abs() <= 1e-5 * want, "{theta} {dim}: {want} {found}");
            }
        }
        assert!(llama3(10_000.0, &[1.0, 3.0, 2.0, 5.0]).is_err());
    }
}
