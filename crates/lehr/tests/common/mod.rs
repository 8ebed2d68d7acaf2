//! What the tests of the command line share: the binary, small data, small models, and looks at
//! folders.

#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

/// The program, to be run in `dir`.
pub(crate) fn lehr(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lehr"));
    command.current_dir(dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Several tests run at once, each with processes of its own.
    command.env("LEHR_THREADS", "1");
    command
}

/// How a run of the program ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) command: String,
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs a command to its end, with `input` on its standard input.
pub(crate) fn finish(mut command: Command, input: &[u8]) -> Ran {
    let name = format!("{:?}", command.get_args().collect::<Vec<&OsStr>>());
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    // A program that ends before it has read everything is no fault of the test.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    let ran = Ran {
        command: name,
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    };
    let panicked = ran.err.contains("panicked") || ran.out.contains("panicked");
    assert!(!panicked, "{ran:#?}");
    ran
}

/// Runs the program in `dir`, whatever comes.
pub(crate) fn run(dir: &Path, args: &[&str]) -> Ran {
    let mut command = lehr(dir);
    command.args(args);
    finish(command, b"")
}

/// Runs the program in `dir`; it must succeed. Gives its standard output.
pub(crate) fn succeeds(dir: &Path, args: &[&str]) -> String {
    let ran = run(dir, args);
    assert_eq!(ran.code, Some(0), "{ran:#?}");
    ran.out
}

/// Runs the program in `dir`; it must fail with a message that contains all of `says`, and with a
/// hint.
pub(crate) fn fails(dir: &Path, args: &[&str], says: &[&str]) {
    check_failure(&run(dir, args), says);
}

/// Checks that the program failed as it should.
pub(crate) fn check_failure(ran: &Ran, says: &[&str]) {
    assert_eq!(ran.code, Some(1), "{ran:#?}");
    assert!(ran.err.starts_with("error: ") || ran.err.contains("\nerror: "), "{ran:#?}");
    let hint = ran.err.lines().find_map(|line| line.strip_prefix("hint: "));
    assert!(hint.is_some_and(|hint| hint.len() > 8), "no hint: {ran:#?}");
    for part in says {
        assert!(ran.err.contains(part), "the message does not say {part:?}: {ran:#?}");
    }
}

/// The JSON value that is the only line of `out`.
#[track_caller]
pub(crate) fn one_json(out: &str) -> Value {
    let [one] = &json_lines(out)[..] else { panic!("expected one line: {out}") };
    one.clone()
}

/// Every line of `out` as JSON.
pub(crate) fn json_lines(out: &str) -> Vec<Value> {
    let parse = |line: &str| {
        serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in the line {line:?}"))
    };
    out.lines().map(parse).collect()
}

/// Numbers that look random, the same in every run.
pub(crate) struct Draws(pub(crate) u64);

impl Draws {
    /// A number below `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        // Knuth's MMIX generator; its upper bits are the good ones.
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn of<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len() as u64) as usize]
    }
}

const GLAD: [&str; 4] = ["clear", "bright", "smooth", "lovely"];
const SAD: [&str; 4] = ["cracked", "dull", "rough", "spoilt"];
const THINGS: [&str; 6] = ["glass", "bowl", "lens", "pane", "lamp", "vase"];

fn sentence(draws: &mut Draws) -> (String, bool) {
    let glad = draws.below(2) == 0;
    let quality = draws.of(if glad { &GLAD } else { &SAD });
    let (thing, days) = (draws.of(&THINGS), draws.below(90));
    (format!("After {days} days in the lehr the {thing} came out {quality}."), glad)
}

/// Writes `text.txt`, paragraphs of `n` sentences in all.
pub(crate) fn write_text(dir: &Path, n: usize) -> PathBuf {
    let (mut draws, mut text) = (Draws(1), String::new());
    for index in 0..n {
        text += &sentence(&mut draws).0;
        text += if index % 4 == 3 { "\n\n" } else { " " };
    }
    write(dir, "text.txt", text)
}

/// Writes `labelled.jsonl` with `n` texts.
pub(crate) fn write_labelled(dir: &Path, n: usize) -> PathBuf {
    let (mut draws, mut lines) = (Draws(2), String::new());
    for _ in 0..n {
        let (text, glad) = sentence(&mut draws);
        let label = if glad { "good" } else { "bad" };
        writeln!(lines, "{}", json!({ "text": text, "label": label })).unwrap();
    }
    write(dir, "labelled.jsonl", lines)
}

/// Writes `chat.jsonl` with `n` conversations.
pub(crate) fn write_chat(dir: &Path, n: usize) -> PathBuf {
    let (mut draws, mut lines) = (Draws(3), String::new());
    for _ in 0..n {
        let (text, glad) = sentence(&mut draws);
        let answer = if glad { "Good." } else { "Melt it again." };
        let messages = json!([
            { "role": "user", "content": text }, { "role": "assistant", "content": answer },
        ]);
        writeln!(lines, "{}", json!({ "messages": messages })).unwrap();
    }
    write(dir, "chat.jsonl", lines)
}

pub(crate) fn write(dir: &Path, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, contents).unwrap();
    path
}

/// Overrides that make a fitted recipe tiny, and independent of the machine's speed.
pub(crate) const TINY: [&str; 16] = [
    // A model that can be written in every format.
    "model.kind=llama",
    "optimizer.kind=adamw",
    "model.n_layers=1",
    "model.hidden_size=16",
    "model.n_heads=2",
    "model.n_kv_heads=1",
    "model.mlp_size=32",
    "model.context=64",
    "tokenizer.vocab_size=300",
    "train.batch_size=4",
    "train.seq_len=32",
    "schedule.warmup_steps=2",
    "eval.every_steps=0",
    "sample.every_steps=0",
    "sample.max_tokens=4",
    "optimizer.lr=0.003",
];

/// `pretrain --data text.txt --out OUT` with a tiny recipe of `steps` steps and more overrides.
pub(crate) fn pretrain_args(out: &str, steps: u64, sets: &[&str]) -> Vec<String> {
    let steps = [format!("train.steps={steps}"), format!("checkpoint.every_steps={steps}")];
    let sets =
        TINY.iter().copied().chain(steps.iter().map(String::as_str)).chain(sets.iter().copied());
    let mut args: Vec<String> =
        ["pretrain", "--data", "text.txt", "--out", out].map(str::to_owned).into();
    args.extend(sets.flat_map(|set| ["--set".to_owned(), set.to_owned()]));
    args
}

/// Pre-trains a tiny model on `text.txt` in the run directory `out` of `dir`.
pub(crate) fn pretrain(dir: &Path, out: &str, sets: &[&str]) -> String {
    if !dir.join("text.txt").exists() {
        write_text(dir, 300);
    }
    let args = pretrain_args(out, 4, sets);
    succeeds(dir, &args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The newest checkpoint of a run.
pub(crate) fn newest_checkpoint(run: &Path) -> PathBuf {
    let step = |path: &PathBuf| -> Option<u64> {
        path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()
    };
    let entries = fs::read_dir(run.join("checkpoints")).unwrap().map(|e| e.unwrap().path());
    entries.max_by_key(step).unwrap()
}

/// The bytes of weights and moments in the newest checkpoint of a run.
pub(crate) fn weights_and_moments(run: &Path) -> [Vec<u8>; 2] {
    let dir = newest_checkpoint(run);
    ["model.safetensors", "optimizer.safetensors"].map(|name| fs::read(dir.join(name)).unwrap())
}

/// Copies the files of a folder into a new one.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// All files below a folder with their contents, to see whether anything was changed.
pub(crate) fn snapshot(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            files.extend(snapshot(&path));
        } else {
            files.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    files
}

/// The goldens of the model crate.
pub(crate) fn model_goldens() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lehr-model/tests/golden");
    let mut dirs: Vec<_> = fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    dirs.sort();
    assert!(dirs.len() >= 3, "goldens are missing");
    dirs
}
