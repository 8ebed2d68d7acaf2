//! Dependencies between the folders of a crate that must not be.
//!
//! The compiler holds the arrows between crates; inside a crate it allows circles. `FORBIDDEN`
//! lists the arrows that would close one, and the check finds them in the paths that source files
//! name: `crate::folder::…`, `use crate::{folder, …}`, `super::…` up to the crate's root. Tests may
//! use everything.

use std::fs;
use std::path::Path;

use crate::Result;

/// A folder or file of a crate, and what it must not use.
struct Rule {
    krate: &'static str,
    from: &'static str,
    not: &'static [&'static str],
    why: &'static str,
}

const FORBIDDEN: &[Rule] = &[
    Rule {
        krate: "lehr-kernels",
        from: "simd",
        not: &["quant", "gemm", "strided", "threads", "arena"],
        why: "the vectors are what kernels are written in",
    },
    Rule {
        krate: "lehr-kernels",
        from: "threads",
        not: &["simd", "quant", "gemm", "strided", "arena"],
        why: "the thread pool knows tasks, not what they compute",
    },
    Rule {
        krate: "lehr-kernels",
        from: "gemm",
        not: &["quant"],
        why: "products of floats know no stored formats",
    },
    Rule {
        krate: "lehr-tensor",
        from: "tensor",
        not: &["ops", "inplace", "params"],
        why: "a tensor is below what is done with it",
    },
    Rule {
        krate: "lehr-tensor",
        from: "autograd",
        not: &["ops", "inplace", "params"],
        why: "gradients know operations by the trait Op alone",
    },
    Rule {
        krate: "lehr-tensor",
        from: "params",
        not: &["ops", "inplace"],
        why: "a parameter is a named tensor with a gradient",
    },
    Rule {
        krate: "lehr-tensor",
        from: "inplace",
        not: &["ops"],
        why: "operations use what writes in place, not the other way round",
    },
    Rule {
        krate: "lehr-model",
        from: "io",
        not: &[
            "arch",
            "model",
            "nn",
            "adapt",
            "cache",
            "paged",
            "classifier",
            "outline",
            "Model",
            "Config",
            "KvCache",
        ],
        why: "files are read and written without knowing a family or a model",
    },
    Rule {
        krate: "lehr-model",
        from: "spec",
        not: &["arch", "model", "nn", "adapt", "io", "cache", "paged", "classifier", "outline"],
        why: "sizes are plain numbers",
    },
    Rule {
        krate: "lehr-model",
        from: "cache",
        not: &["arch", "model", "nn", "adapt", "io", "paged", "classifier", "outline", "Model"],
        why: "a cache knows sizes, not what fills it",
    },
    Rule {
        krate: "lehr-model",
        from: "nn",
        not: &["arch", "model", "io", "cache", "paged", "classifier", "outline", "Model"],
        why: "layers are below the architectures that use them",
    },
    Rule {
        krate: "lehr-model",
        from: "adapt",
        not: &["arch", "model", "io", "cache", "paged", "classifier", "outline", "Model"],
        why: "an adapter knows one linear layer, not the model around it",
    },
    Rule {
        krate: "lehr-model",
        from: "arch",
        not: &["model", "adapt", "paged", "classifier", "outline", "Model"],
        why: "a family computes from its layers; models, adapters and pages are built around it",
    },
];

/// Finds the forbidden dependencies in the crates below `root`.
///
/// # Errors
/// If a source file cannot be read.
pub fn problems(root: &Path) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for rule in FORBIDDEN {
        let src = root.join("crates").join(rule.krate).join("src");
        let mut files = Vec::new();
        collect(&src, &src, &mut files)?;
        files.retain(|(modules, _)| modules.first().is_some_and(|m| m == rule.from));
        if files.is_empty() {
            let Rule { krate, from, .. } = rule;
            problems
                .push(format!("{krate} has no `{from}`: mend its rule in xtask/src/folders.rs"));
        }
        for (modules, text) in files {
            for used in used(&text, modules.len()) {
                if rule.not.contains(&used.as_str()) {
                    let place = modules.join("::");
                    let Rule { krate, from, why, .. } = rule;
                    problems
                        .push(format!("{krate}: {place} uses {used}, but {from} may not: {why}"));
                }
            }
        }
    }
    Ok(problems)
}

/// Module path and text of every source file below `dir` that is not a test.
fn collect(src: &Path, dir: &Path, files: &mut Vec<(Vec<String>, String)>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(|e| format!("reading {}: {e}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            collect(src, &path, files)?;
        } else if path.extension().is_some_and(|e| e == "rs") && !is_test(&name) {
            let below = path.strip_prefix(src)?.with_extension("");
            let modules = below.iter().map(|part| part.to_string_lossy().into_owned());
            let modules = modules.filter(|m| m != "mod" && m != "lib").collect();
            files.push((modules, fs::read_to_string(&path)?));
        }
    }
    Ok(())
}

fn is_test(name: &str) -> bool {
    name == "tests" || name.ends_with("_tests") || name == "reference"
}

/// Lists the modules at the crate's root that a file names, itself `depth` modules below it.
/// Comments and a module of tests at its end do not count.
#[must_use]
pub fn used(text: &str, depth: usize) -> Vec<String> {
    let code: Vec<&str> = text
        .split("\n#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or_default()
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect();
    let code = code.join("\n");
    let mut used = Vec::new();
    let up = "super::".repeat(depth);
    for start in ["crate::", up.as_str()] {
        if start.is_empty() {
            continue;
        }
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back().unwrap_or(' ');
            let rest = &code[at + start.len()..];
            // `$crate::`, `lehr_crate::` and a longer chain of `super::` are other paths.
            if before == '$' || before == ':' || is_word(before) || rest.starts_with("super::") {
                continue;
            }
            used.extend(names(rest));
        }
    }
    used.sort();
    used.dedup();
    used
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The first names of what follows `crate::`: one, or those of a group in braces.
fn names(rest: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| is_word(*c)).collect::<String>();
    let Some(group) = rest.strip_prefix('{') else { return vec![word(rest)] };
    let (mut depth, mut first, mut names) = (0usize, true, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => first = true,
            c if first && is_word(c) => {
                names.push(word(&group[at..]));
                first = false;
            }
            _ => (),
        }
    }
    names
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    /// Breaks each rule by each name it forbids, in a folder that holds nothing else.
    #[test]
    fn every_rule_can_fail() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        for rule in FORBIDDEN {
            fs::create_dir_all(root.join("crates").join(rule.krate).join("src")).unwrap();
        }
        for Rule { krate, from, not, .. } in FORBIDDEN {
            let src = root.join("crates").join(krate).join("src");
            for name in *not {
                fs::write(src.join(format!("{from}.rs")), format!("use crate::{name};\n")).unwrap();
                let found = format!("{krate}: {from} uses {name}, but {from} may not");
                let all = problems(root).unwrap();
                assert!(all.iter().any(|p| p.starts_with(&found)), "{found}: not found");
            }
            fs::write(src.join(format!("{from}.rs")), "use crate::Result;\n").unwrap();
            let all = problems(root).unwrap();
            assert!(!all.iter().any(|p| p.starts_with(&format!("{krate}: {from} "))), "{from}");
        }
    }
}
