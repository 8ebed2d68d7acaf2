//! Dependencies between the crates point one way.

use std::path::Path;

use serde_json::Value;

use crate::{Result, cargo};

/// Each crate and the workspace crates it may use. The same arrows hold for tests and build
/// scripts.
const ARROWS: &[(&str, &[&str])] = &[
    ("lehr-kernels", &[]),
    ("lehr-cuda", &["lehr-kernels"]),
    ("lehr-tensor", &["lehr-kernels", "lehr-cuda"]),
    ("lehr-tokenizer", &[]),
    ("lehr-demo", &[]),
    ("lehr-model", &["lehr-tensor"]),
    ("lehr-data", &["lehr-tokenizer"]),
    ("lehr-infer", &["lehr-model", "lehr-tokenizer", "lehr-tensor"]),
    ("lehr-eval", &["lehr-infer", "lehr-data", "lehr-model", "lehr-tensor", "lehr-tokenizer"]),
    (
        "lehr-train",
        &["lehr-model", "lehr-data", "lehr-infer", "lehr-eval", "lehr-tensor", "lehr-tokenizer"],
    ),
    (
        "lehr",
        &[
            "lehr-tensor",
            "lehr-tokenizer",
            "lehr-demo",
            "lehr-model",
            "lehr-data",
            "lehr-infer",
            "lehr-eval",
            "lehr-train",
        ],
    ),
    ("xtask", &[]),
];

/// Returns what is wrong in the workspace at `root`.
///
/// # Errors
/// If `cargo metadata` fails.
pub fn problems(root: &Path) -> Result<Vec<String>> {
    let arguments = ["metadata", "--format-version", "1", "--no-deps", "--offline"];
    let output = cargo(root, &arguments).output()?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        return Err(format!("`cargo metadata` in {}: {reason}", root.display()).into());
    }
    Ok(of_metadata(&serde_json::from_slice(&output.stdout)?))
}

/// Returns what is wrong in the output of `cargo metadata --no-deps`.
#[must_use]
pub fn of_metadata(metadata: &Value) -> Vec<String> {
    let packages = metadata["packages"].as_array().map_or(&[][..], Vec::as_slice);
    let names: Vec<_> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    let mut problems = Vec::new();
    if packages.is_empty() {
        problems.push("the workspace has no packages".to_owned());
    }
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = ARROWS.iter().find(|(n, _)| *n == name) else {
            problems.push(format!("{name} has no arrows: add it to xtask/src/arrows.rs"));
            continue;
        };
        let used = package["dependencies"].as_array().map_or(&[][..], Vec::as_slice);
        for dependency in used {
            let used = dependency["name"].as_str().unwrap_or_default();
            if names.contains(&used) && !allowed.contains(&used) {
                let kind = dependency["kind"].as_str().map_or(String::new(), |k| format!(" ({k})"));
                let allowed = match allowed {
                    [] => "no crate of ours".to_owned(),
                    _ => allowed.join(", "),
                };
                problems.push(format!("{name} uses {used}{kind}, but may use {allowed}"));
            }
        }
    }
    problems
}
