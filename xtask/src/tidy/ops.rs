//! Operations of tensors that nothing uses.

use super::Source;
use super::rust::functions;

/// The folder of operations.
const FOLDER: &str = "crates/lehr-tensor/src/ops/";
/// Fewer operations than this mean that the folder was not found.
const N_LEAST: usize = 20;

/// Operations without a caller that stay, and why.
const KEPT: &[(&str, &str)] = &[
    ("dropout", "regularisation for fine-tuning; no recipe key sets it yet"),
    ("mean", "a thin op: new formulas are composed of these before they are fused"),
    ("neg", "a thin op"),
    ("sigmoid", "a thin op"),
];

/// Public operations of `Tensor` that only tests call. An operation costs kernels for two kinds of
/// device and their tests, so it must earn them.
#[must_use]
pub fn unused_ops(sources: &[Source]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut n_ops = 0;
    let code: Vec<_> = sources.iter().filter(|s| s.is("rs") && !is_test(s)).collect();
    for source in code.iter().filter(|s| s.path.starts_with(FOLDER)) {
        for op in functions(&source.text).iter().filter(|f| is_op(f.lines[0], &source.text)) {
            n_ops += 1;
            let kept = KEPT.iter().any(|(name, _)| *name == op.name);
            let called = code.iter().any(|s| calls(&s.text, op.name));
            if !called && !kept {
                problems.push(format!(
                    "{}:{}: `Tensor::{}` has no caller outside tests",
                    source.path, op.line, op.name
                ));
            }
            if called && kept {
                problems.push(format!("xtask: `{}` of KEPT has a caller now", op.name));
            }
        }
    }
    if !code.is_empty() && n_ops < N_LEAST {
        problems.push(format!("{FOLDER}: {n_ops} operations found, at least {N_LEAST} expected"));
    }
    problems
}

fn is_test(source: &Source) -> bool {
    source.is_test() || source.path.contains("/testing/") || source.path.contains("/examples/")
}

/// Whether a line declares a method in `impl Tensor`.
fn is_op(line: &str, text: &str) -> bool {
    line.starts_with("    pub fn ") && text.lines().any(|l| l == "impl Tensor {")
}

/// Whether a text calls the method, or names it to pass it on. Comments do not count.
fn calls(text: &str, name: &str) -> bool {
    let code = text.lines().filter(|l| !l.trim_start().starts_with("//"));
    let ways = [format!(".{name}("), format!("Tensor::{name}"), format!("Self::{name}(")];
    code.into_iter().any(|line| ways.iter().any(|way| has_whole(line, way)))
}

/// Whether `way` occurs and is not the beginning of a longer name.
fn has_whole(line: &str, way: &str) -> bool {
    line.match_indices(way).any(|(at, _)| {
        let after = line[at + way.len()..].chars().next();
        way.ends_with('(') || after.is_none_or(|c| !c.is_alphanumeric() && c != '_')
    })
}
