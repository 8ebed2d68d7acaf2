//! Commands in READMEs and guides: `lehr` accepts every one of them.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{Result, markdown, test_command};

/// Number of commands with which both READMEs start.
const N_FIRST: usize = 2;

/// Checks README.md, README.zh.md and the Markdown files of `docs` against the built program, and
/// returns what is wrong.
///
/// # Errors
/// If a file cannot be read or the program does not start.
pub fn problems(root: &Path, program: &Path) -> Result<Vec<String>> {
    let mut help = |path: &[String]| help_of(program, path);
    problems_with(root, &mut help)
}

/// Returns the `--help` text of a command, or `None` if there is no such command.
pub type Help<'a> = dyn FnMut(&[String]) -> Result<Option<String>> + 'a;

/// Like [`problems`], with a function in place of the program.
///
/// # Errors
/// If a file cannot be read or `help` fails.
pub fn problems_with(root: &Path, help: &mut Help<'_>) -> Result<Vec<String>> {
    let readmes = ["README.md", "README.zh.md"].map(|name| root.join(name));
    let mut files = readmes.to_vec();
    if root.join("docs").is_dir() {
        files.extend(markdown::files(&root.join("docs"))?);
    }
    let mut problems = Vec::new();
    let mut first = Vec::new();
    let mut cache = HashMap::new();
    for (i, file) in files.iter().enumerate() {
        let name = file.strip_prefix(root).unwrap_or(file).display();
        let Ok(text) = fs::read_to_string(file) else {
            problems.push(format!("{name} is missing or not text"));
            continue;
        };
        let commands = markdown::commands(&text);
        for (line, command) in &commands {
            for fault in faults(command, &mut cache, help)? {
                problems.push(format!("{name}:{line}: {fault}"));
            }
        }
        if i < readmes.len() {
            first.push(commands.into_iter().map(|c| c.1).take(N_FIRST).collect::<Vec<_>>());
        }
        if i == 0 && !text.contains(&test_command()) {
            problems.push(format!("{name} does not name `{}`, the test command", test_command()));
        }
    }
    if let [english, chinese] = first.as_slice()
        && (english != chinese || english.len() < N_FIRST)
    {
        problems.push(format!(
            "the READMEs must start with the same {N_FIRST} commands, \
             not {english:?} and {chinese:?}"
        ));
    }
    Ok(problems)
}

type Cache = HashMap<Vec<String>, Option<String>>;

/// Lists what `lehr` would reject in a line of shell.
fn faults(line: &str, cache: &mut Cache, help: &mut Help<'_>) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for part in line.split(['|', ';', '&']) {
        let words: Vec<_> = part.split_whitespace().collect();
        if let Some(words) = arguments(&words) {
            faults.extend(faults_of(words, cache, help)?);
        }
    }
    Ok(faults)
}

/// Returns the words after the program's name, if the command starts `lehr`.
fn arguments<'a>(words: &'a [&'a str]) -> Option<&'a [&'a str]> {
    let is_setting = |w: &&str| w.split_once('=').is_some_and(|(name, _)| !name.starts_with('-'));
    let skipped = words.iter().take_while(|w| is_setting(w)).count();
    let words = &words[skipped..];
    let name = *words.first()?;
    if name == "lehr" || name.ends_with("/lehr") {
        return Some(&words[1..]);
    }
    let through_cargo = name == "cargo" && words.get(1) == Some(&"run");
    let start = words.iter().position(|w| *w == "--")?;
    let ours = words[..start].windows(2).any(|w| w == ["-p", "lehr"]);
    (through_cargo && ours).then(|| &words[start + 1..])
}

fn faults_of(words: &[&str], cache: &mut Cache, help: &mut Help<'_>) -> Result<Vec<String>> {
    let mut path = Vec::new();
    let mut text = cached(&path, cache, help)?.unwrap_or_default();
    let mut rest = words;
    // Descends while the help lists commands and the next word is not an option.
    while let Some((word, after)) = rest.split_first()
        && !word.starts_with('-')
        && has_commands(&text)
    {
        if !lists_command(&text, word) {
            return Ok(vec![format!("`lehr {}` has no command `{word}`", path.join(" "))]);
        }
        path.push((*word).to_owned());
        text = match cached(&path, cache, help)? {
            Some(text) => text,
            None => return Ok(vec![format!("`lehr {} --help` fails", path.join(" "))]),
        };
        rest = after;
    }
    let options = rest.iter().filter(|w| is_option(w));
    let unknown = options.filter(|w| !lists_option(&text, w.split('=').next().unwrap_or(w)));
    Ok(unknown.map(|w| format!("`lehr {}` has no option `{w}`", path.join(" "))).collect())
}

fn cached(path: &[String], cache: &mut Cache, help: &mut Help<'_>) -> Result<Option<String>> {
    if let Some(text) = cache.get(path) {
        return Ok(text.clone());
    }
    let text = help(path)?;
    cache.insert(path.to_vec(), text.clone());
    Ok(text)
}

/// Whether a word is `-x` or `--name`; `-`, `-5` and quoted text are not.
fn is_option(word: &str) -> bool {
    let name = word.trim_start_matches('-');
    word.starts_with('-') && name.starts_with(|c: char| c.is_ascii_alphabetic())
}

fn has_commands(help: &str) -> bool {
    help.lines().any(|line| line == "Commands:")
}

fn lists_command(help: &str, word: &str) -> bool {
    let section = help.lines().skip_while(|l| *l != "Commands:").skip(1);
    let mut section = section.take_while(|l| l.is_empty() || l.starts_with(' '));
    section.any(|l| l.split_whitespace().next() == Some(word))
}

/// Whether a line of the help begins with the option, alone or as `-s, --long`.
fn lists_option(help: &str, option: &str) -> bool {
    let starts = help.lines().map(str::trim_start).filter(|l| l.starts_with('-'));
    let mut listed = starts.flat_map(|l| l.split_whitespace().take(2));
    listed.any(|word| {
        let word = word.trim_end_matches([',', '.']);
        word.split(['=', '[', '<']).next() == Some(option)
    })
}

/// Runs the program with the words of `path` and `--help`, and returns what it prints.
fn help_of(program: &Path, path: &[String]) -> Result<Option<String>> {
    let output = Command::new(program).args(path).arg("--help").output();
    let output = output.map_err(|e| format!("starting {}: {e}", program.display()))?;
    Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
}
