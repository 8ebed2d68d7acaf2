//! Everything a change must pass, in order.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::{Result, TEST, arrows, cargo, links, readme};

/// The steps of cargo before our own checks.
const STEPS: &[(&str, &[&str])] = &[
    ("lock file", &["metadata", "--locked", "--format-version", "1", "--quiet"]),
    ("form", &["fmt", "--all", "--check"]),
    ("lints", &["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    ("tests", TEST),
    ("documentation", &["doc", "--release", "--workspace", "--no-deps"]),
];

/// Runs all steps, telling `begin` what each does; false at the first that fails.
///
/// # Errors
/// If cargo does not start or a file cannot be read.
pub fn run(root: &Path, mut begin: impl FnMut(&str)) -> Result<bool> {
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
    problems.extend(links::problems(root)?);
    problems.extend(readme::problems(root, &build_lehr(root, true)?)?);
    for problem in &problems {
        begin(problem);
    }
    if !problems.is_empty() {
        begin("failed");
        return Ok(false);
    }
    let good = kernels(root, &mut begin)?;
    begin(if good { "all passed" } else { "failed" });
    Ok(good)
}

/// Compiles every GPU kernel for every architecture; false if one does not compile or spills
/// registers. Without NVIDIA's run-time compiler nothing is checked, which is said.
///
/// # Errors
/// If the program does not build or start.
pub fn kernels(root: &Path, mut begin: impl FnMut(&str)) -> Result<bool> {
    const ARCHS: &str = "sm_80,sm_89,sm_90a";
    let program = build_lehr(root, true)?;
    let doctor = Command::new(&program).args(["doctor", "--json"]).output()?;
    let found: Value = serde_json::from_slice(&doctor.stdout)?;
    if found["libraries"]["nvrtc"].is_null() {
        begin("NOT TESTED: GPU kernels, because NVRTC is missing (scripts/get-cuda.sh fetches it)");
        return Ok(true);
    }
    begin(&format!("GPU kernels: lehr doctor --compile {ARCHS}"));
    Ok(Command::new(&program).args(["doctor", "--compile", ARCHS]).status()?.success())
}

/// Builds the program `lehr` and returns its path. The whole workspace is selected, because cargo
/// then chooses the same features as for the tests and has little to build anew.
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
