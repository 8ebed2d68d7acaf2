//! The gate: everything a change must pass, in order.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::{Result, TEST, arrows, cargo, folders, links, readme, requires_fixtures, tidy};

/// Steps that cargo runs, before the other checks of this crate.
const STEPS: &[(&str, &[&str])] = &[
    ("lock file", &["metadata", "--locked", "--format-version", "1", "--quiet"]),
    ("lints", &["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    ("tests", TEST),
    ("documentation", &["doc", "--release", "--workspace", "--no-deps"]),
];

/// Runs all steps and tells `begin` what each does. Returns false at the first that fails.
///
/// # Errors
/// If cargo does not start or a file cannot be read.
pub fn run(root: &Path, mut begin: impl FnMut(&str)) -> Result<bool> {
    begin("form: cargo xtask tidy");
    if !none(&tidy::problems(root)?, &mut begin) {
        return Ok(false);
    }
    let n_skips = tidy::count_skips(&tidy::sources(root)?);
    let effect = if requires_fixtures() { "fail" } else { "are skipped" };
    begin(&format!("{n_skips} tests {effect} where large files are missing"));
    for (name, arguments) in STEPS {
        begin(&format!("{name}: cargo {}", arguments.join(" ")));
        let mut command = cargo(root, arguments);
        match arguments[0] {
            "metadata" => command.stdout(Stdio::null()),
            "doc" => command.env("RUSTDOCFLAGS", "-D warnings"),
            _ => &mut command,
        };
        if !command.status()?.success() {
            begin(&format!("{name} failed"));
            return Ok(false);
        }
    }
    begin("crate dependencies, paths and commands in Markdown");
    let mut problems = arrows::problems(root)?;
    problems.extend(folders::problems(root)?);
    problems.extend(links::problems(root)?);
    problems.extend(readme::problems(root, &build_lehr(root, true)?)?);
    if !none(&problems, &mut begin) {
        return Ok(false);
    }
    let good = kernels(root, &mut begin)?;
    begin(if good { "all passed" } else { "failed" });
    Ok(good)
}

/// Tells `begin` the problems; true if there are none.
fn none(problems: &[String], begin: &mut impl FnMut(&str)) -> bool {
    for problem in problems {
        begin(problem);
    }
    if !problems.is_empty() {
        begin("failed");
    }
    problems.is_empty()
}

/// Compiles every GPU kernel for every architecture. Returns false if one does not compile or
/// spills registers. Without NVIDIA's run-time compiler (NVRTC) it checks nothing and says so, or
/// returns false if missing files are failures ([`requires_fixtures`]).
///
/// # Errors
/// If the program does not build or start.
pub fn kernels(root: &Path, mut begin: impl FnMut(&str)) -> Result<bool> {
    const ARCHS: &str = "sm_80,sm_89,sm_90a";
    let program = build_lehr(root, true)?;
    let doctor = Command::new(&program).args(["doctor", "--json"]).output()?;
    let found: Value = serde_json::from_slice(&doctor.stdout)?;
    if found["libraries"]["nvrtc"].is_null() {
        return Ok(without_nvrtc(requires_fixtures(), &mut begin));
    }
    begin(&format!("GPU kernels: lehr doctor --compile {ARCHS}"));
    Ok(Command::new(&program).args(["doctor", "--compile", ARCHS]).status()?.success())
}

/// Reports that kernels cannot be compiled; true if that may be.
fn without_nvrtc(required: bool, begin: &mut impl FnMut(&str)) -> bool {
    let fetch = "NVRTC is missing: scripts/get-cuda.sh fetches it, LEHR_CUDA_LIBS names its folder";
    begin(&match required {
        true => format!("GPU kernels cannot be compiled, as LEHR_REQUIRE_FIXTURES=1 asks: {fetch}"),
        false => format!("NOT TESTED: GPU kernels. {fetch}"),
    });
    !required
}

/// Builds the program `lehr` and returns its path. It selects the whole workspace, because cargo
/// then uses the same features as for the tests and rebuilds little.
///
/// # Errors
/// If it does not build.
pub fn build_lehr(root: &Path, release: bool) -> Result<PathBuf> {
    let mut command = cargo(root, &["build", "--workspace", "--bin", "lehr"]);
    command.args(["--message-format", "json-render-diagnostics"]);
    command.args(release.then_some("--release"));
    let output = command.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err("`cargo build --bin lehr` failed".into());
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut programs = messages.filter_map(|m| m["executable"].as_str().map(PathBuf::from));
    programs.next_back().ok_or_else(|| "`cargo build --bin lehr` built no program".into())
}

#[cfg(test)]
mod tests {
    use super::without_nvrtc;

    #[test]
    fn kernels_without_a_compiler_pass_only_where_files_may_be_missing() {
        let mut said = Vec::new();
        assert!(without_nvrtc(false, &mut |line: &str| said.push(line.to_owned())));
        assert!(!without_nvrtc(true, &mut |line: &str| said.push(line.to_owned())));
        assert!(said[0].starts_with("NOT TESTED") && !said[1].contains("NOT TESTED"), "{said:?}");
    }
}
