//! What can go wrong is told: exit code 1, the thing by its name, a hint, and nothing lost.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(unix)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use common::{
    TINY, check_failure, copy_folder, fails, finish, json_lines, lehr, model_goldens,
    newest_checkpoint, pretrain, pretrain_args, run, snapshot, succeeds, weights_and_moments,
    write, write_chat, write_labelled, write_text,
};
use tempfile::TempDir;

/// A folder with `text.txt`, a trained model in `base` and a classifier in `labels`; tests only
/// read it.
fn shared() -> &'static Path {
    static SHARED: OnceLock<TempDir> = OnceLock::new();
    let scratch = SHARED.get_or_init(|| {
        let scratch = tempfile::tempdir().unwrap();
        pretrain(scratch.path(), "base", &[]);
        write_labelled(scratch.path(), 40);
        let args = ["finetune", "--model", "base", "--data", "labelled.jsonl", "--out", "labels"];
        let sets = ["train.steps=2", "schedule.warmup_steps=1"];
        succeeds(scratch.path(), &with_sets(&args, &sets));
        scratch
    });
    scratch.path()
}

fn with_sets<'a>(args: &[&'a str], sets: &[&'a str]) -> Vec<&'a str> {
    args.iter().copied().chain(sets.iter().flat_map(|set| ["--set", set])).collect()
}

/// A copy of the shared model's folder, to be damaged.
fn model_copy(dir: &Path, name: &str) -> PathBuf {
    checkpoint_copy(dir, "base", name)
}

/// A copy of a shared run's checkpoint, without the manifest that would name any change.
fn checkpoint_copy(dir: &Path, run: &str, name: &str) -> PathBuf {
    let copy = dir.join(name);
    copy_folder(&newest_checkpoint(&shared().join(run)), &copy);
    fs::remove_file(copy.join("manifest.json")).unwrap();
    copy
}

/// The arguments of a tiny pre-training with more overrides, all as text.
fn tiny<'a>(data: &'a str, out: &'a str, sets: &[&'a str]) -> Vec<&'a str> {
    let sets: Vec<_> = TINY.iter().chain(&["train.steps=4"]).chain(sets).copied().collect();
    with_sets(&["pretrain", "--data", data, "--out", out], &sets)
}

fn finetune_args<'a>(model: &'a str, data: &'a str) -> [&'a str; 7] {
    ["finetune", "--model", model, "--data", data, "--out", "out"]
}

fn replace_in(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{} lacks {from:?}", path.display());
    fs::write(path, text.replace(from, to)).unwrap();
}

fn cut(path: &Path, len: u64) {
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
}

#[test]
fn wrong_usage_ends_with_code_2_and_the_usage() {
    let dir = tempfile::tempdir().unwrap();
    for args in [
        &["frobnicate"][..],
        &[],
        &["pretrain", "--no-such-flag"],
        &["pretrain", "--resume", "a", "--data", "b"],
        &["pretrain", "--resume", "a", "--seed", "2"],
        &["pretrain", "a.toml", "--minutes", "3"],
        &["pretrain", "a.toml", "--depth", "3"],
        &["pretrain", "--resume", "a", "--minutes", "3"],
        &["pretrain", "--minutes", "soon"],
        &["plan"],
        &["generate", "base"],
        &["generate", "base", "-p", "x", "--greedy", "--temperature", "1"],
        &["finetune", "--model", "a", "--data", "b", "--kind", "poems"],
        &["verify", "base"],
        &["bench", "step", "--config", "huge"],
    ] {
        let ran = run(dir.path(), args);
        assert_eq!(ran.code, Some(2), "{ran:#?}");
        assert!(ran.err.contains("--help") || ran.err.contains("Usage"), "{ran:#?}");
    }
    assert!(snapshot(dir.path()).is_empty());
}

#[test]
fn missing_files_and_folders_are_named() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    write(dir, "file.txt", "text");
    write(dir, "empty/note.txt", "no model");
    fails(dir, &["pretrain", "--data", "nowhere.txt"], &["nowhere.txt", "No such file"]);
    fails(dir, &["pretrain", "nowhere.toml"], &["nowhere.toml"]);
    fails(dir, &["pretrain"], &["--data"]);
    fails(dir, &["pretrain", "--resume", "nowhere"], &["nowhere/recipe.toml"]);
    fails(dir, &["finetune"], &["needs a model and data"]);
    fails(dir, &["finetune", "--resume", "nowhere"], &["nowhere/recipe.toml"]);
    fails(dir, &["finetune", "--model", "nowhere", "--data", "file.txt"], &["nowhere"]);
    for command in ["generate", "chat"] {
        fails(dir, &[command, "nowhere", "-p", "x"], &["nowhere", "no such file or folder"]);
        fails(dir, &[command, "file.txt", "-p", "x"], &["file.txt", "it is a file"]);
        fails(
            dir,
            &[command, "empty", "-p", "x"],
            &["empty", "neither config.json nor checkpoints"],
        );
    }
    fails(dir, &["classify", "nowhere", "-t", "x"], &["nowhere"]);
    fails(dir, &["verify", "nowhere", "file.txt"], &["nowhere"]);
    fails(dir, &["verify", &model_goldens()[0].display().to_string(), "no.golden"], &["no.golden"]);
    assert_eq!(snapshot(dir).len(), 2, "something was written");
}

#[test]
fn wrong_settings_are_named_with_what_was_meant() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    write_text(dir, 300);
    let refused = |sets: &[&str], says: &[&str]| fails(dir, &tiny("text.txt", "out", sets), says);
    refused(&["optimizer.wieght_decay=1"], &["wieght_decay", "hint: did you mean `weight_decay`?"]);
    refused(&["trian.steps=1"], &["trian", "hint: did you mean `train`?"]);
    refused(&["nonsense"], &["nonsense", "expected key=value"]);
    refused(&["run.seed=-1"], &["seed = -1"]);
    refused(&["tokenizer.vocab_size=many"], &["many"]);
    // All at once, so that nobody has to try again and again.
    refused(
        &[
            "train.batch_size=0",
            "optimizer.beta2=1.5",
            "train.seq_len=500",
            "sample.prompts=[\"\"]",
        ],
        &[
            "train.batch_size is 0",
            "beta2 is 1.5",
            "train.seq_len is 500",
            "sample.prompts is empty at 0",
        ],
    );
    for (minutes, says) in [("0", "0"), ("-2", "-2"), ("nan", "NaN"), ("inf", "inf")] {
        let minutes = format!("--minutes={minutes}");
        fails(dir, &["pretrain", "--data", "text.txt", &minutes], &["--minutes", says]);
    }
    assert_eq!(snapshot(dir).len(), 1, "something was written");
    // What shows only once data or model are made.
    refused(&["tokenizer.vocab_size=100"], &["vocab_size is 100", "at least 261"]);
    refused(&["model.n_heads=3"], &["num_attention_heads is 3", "hidden_size = 16"]);
    refused(&["model.hidden_size=18", "model.n_heads=6"], &["head"]);
    let long = format!("sample.prompts=[\"{}\"]", "glass 1234 ".repeat(20));
    refused(&[&long], &["the prompt has", "context is 64"]);
    // A failed attempt does not keep the right one from its run directory.
    succeeds(dir, &tiny("text.txt", "out", &[]));
}

#[test]
fn a_misspelt_key_in_a_recipe_file_is_named_with_its_line() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    write_text(dir, 300);
    let args = [tiny("text.txt", "out", &[]), vec!["--dry-run"]].concat();
    let recipe = succeeds(dir, &args).replace("beta1", "bate1");
    write(dir, "recipe.toml", &recipe);
    let line = recipe.lines().position(|l| l.starts_with("bate1")).unwrap();
    let section = recipe.lines().position(|l| l == "[optimizer]").unwrap();
    assert!(line > section);
    let says = ["recipe.toml", "bate1", "hint: did you mean `beta1`?"];
    fails(dir, &["pretrain", "recipe.toml"], &says);
    write(dir, "cut.toml", &recipe[..recipe.len() / 2]);
    fails(dir, &["pretrain", "cut.toml"], &["cut.toml"]);
    assert!(!dir.join("out").exists());
}

#[test]
fn data_that_cannot_be_learnt_from_is_named_with_its_place() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let refused = |name: &str, contents: &[u8], says: &[&str]| {
        write(dir, name, contents);
        fails(dir, &tiny(name, "out", &[]), &[&[name], says].concat());
    };
    refused("latin.txt", b"glass\nvitr\xe9\n", &["line 2 is not UTF-8", "offset 10", "iconv"]);
    refused("utf16.txt", b"\xff\xfeg\0l\0", &["UTF-16, expected UTF-8"]);
    refused("empty.txt", b"", &["found no document"]);
    refused("blank.txt", b" \n\n \t\n", &["found no document"]);
    refused("photo.jpeg", b"glass", &[".jpeg", ".txt"]);
    refused("not.txt.gz", b"glass", &["decompressing"]);
    refused("not.txt.zst", b"glass", &["decompressing"]);
    refused("cut.jsonl", b"{\"text\":\"a\"}\n{\"text\":", &["line 2", "not JSON"]);
    refused("body.jsonl", b"{\"body\":\"a\"}\n", &["line 1", "no field \"text\"", "\"body\""]);
    refused("number.jsonl", b"{\"text\":7}\n", &["line 1", "expected a string"]);
    fs::create_dir(dir.join("folder")).unwrap();
    fails(dir, &tiny("folder", "out", &[]), &["folder", "found no document"]);
    assert!(!dir.join("out").exists());
    write(dir, "short.txt", "Only one line.");
    fails(dir, &tiny("short.txt", "out", &[]), &["data.path holds 1 documents", "validation_path"]);
}

#[test]
fn labels_and_conversations_that_do_not_fit_are_named() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let base = shared().join("base").display().to_string();
    let args = |data| finetune_args(&base, data);
    let refused = |name: &str, contents: &str, says: &[&str]| {
        write(dir, name, contents);
        fails(dir, &finetune_args(&base, name), says);
    };
    refused("other.jsonl", "{\"body\":\"a\"}\n", &["other.jsonl", "\"body\""]);
    refused(
        "role.jsonl",
        "{\"messages\":[{\"role\":\"assistant\",\"content\":\"a\"}]}\n",
        &["role.jsonl", "line 1", "found role assistant, expected user"],
    );
    refused(
        "one.jsonl",
        &["a", "b", "c"].map(|text| format!("{{\"text\":\"{text}\",\"label\":\"x\"}}\n")).concat(),
        &["found \"x\"", "at least two"],
    );
    write(dir, "few.jsonl", "{\"text\":\"a\",\"label\":\"x\"}\n");
    fails(dir, &args("few.jsonl"), &["1 labelled texts, too few"]);
    write_labelled(dir, 40);
    // Text is no conversation, even if someone says so.
    write_text(dir, 50);
    let kind = [&args("text.txt")[..], &["--kind", "chat"]].concat();
    fails(dir, &kind, &["text.txt", ".jsonl"]);
    fails(
        dir,
        &[&args("labelled.jsonl")[..], &["--kind", "chat"]].concat(),
        &["labelled.jsonl", "messages"],
    );
}

#[test]
fn a_run_directory_of_another_recipe_is_left_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    pretrain(dir, "base", &[]);
    let before = snapshot(dir);
    let refused = |args: &[&str]| fails(dir, args, &["base", "another recipe", "--out"]);
    let mut args = pretrain_args("base", 4, &[]);
    args.extend(["--seed".to_owned(), "2".to_owned()]);
    refused(&args.iter().map(String::as_str).collect::<Vec<_>>());
    refused(&["pretrain", "--resume", "base", "--set", "train.steps=9"]);
    // The settings in which they differ are named.
    let other = ["pretrain", "--resume", "base", "--set", "train.steps=9"];
    fails(dir, &other, &["train.steps is 4 instead of 9"]);
    assert!(snapshot(dir) == before, "the run was touched");
}

#[test]
fn arguments_and_settings_of_the_same_key_are_refused_and_repeated_ones_named() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    write_text(dir, 300);
    let data = ["pretrain", "--data", "text.txt", "--dry-run"];
    for (name, value, key) in [
        ("--data", "text.txt", "data.path"),
        ("--out", "a", "run.dir"),
        ("--seed", "3", "run.seed"),
        ("--device", "cpu", "run.device"),
        ("--dtype", "f32", "run.dtype"),
    ] {
        let set = format!("{key}={value}");
        let own: &[&str] = if name == "--data" { &[] } else { &[name, value] };
        let args = [&data[..], own, &["--set", &set]].concat();
        fails(dir, &args, &[&format!("{name} and --set {key} are both given")]);
        if name != "--data" {
            let written = succeeds(dir, &[&data[..], &["--set", &set]].concat());
            assert!(written.contains(value), "{set}: {written}");
        }
    }
    let tune = ["finetune", "--model", "base", "--data", "text.txt", "--set", "model.path=b"];
    fails(dir, &tune, &["--model and --set model.path are both given"]);
    let twice = ["--set", "train.steps=3", "--set", "train.steps=4"];
    let ran = run(dir, &[&data[..], &twice].concat());
    assert!(ran.out.contains("steps = 4\n"), "{ran:#?}");
    assert!(ran.err.contains("train.steps is set more than once"), "{ran:#?}");
    // A run directory in what is read would be read by the next run.
    let folder = ["pretrain", "--data", ".", "--out", "runs/a"];
    fails(dir, &folder, &["runs/a lies in the folder of the data", "--out"]);
    assert_eq!(snapshot(dir).len(), 1, "something was written");
    let model = newest_checkpoint(&shared().join("base")).display().to_string();
    let tune = ["finetune", "--model", &model, "--data", "text.txt", "--out", &model];
    fails(dir, &tune, &["lies in the folder of the model"]);
}

#[test]
fn damaged_models_are_refused_with_the_file_and_the_fault() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let refused = |name: &str, says: &[&str]| {
        fails(dir, &["generate", name, "-p", "x"], says);
        fails(dir, &["chat", name, "-p", "x"], says);
        fails(dir, &["finetune", "--model", name, "--data", "text.txt", "--out", "out"], says);
    };
    write_text(dir, 50);
    let copy = model_copy(dir, "shape");
    replace_in(&copy.join("config.json"), "\"intermediate_size\": 32", "\"intermediate_size\": 48");
    refused("shape", &["gate_proj.weight", "[48, 16]", "[32, 16]", "of one model"]);
    cut(&model_copy(dir, "cut").join("model.safetensors"), 9000);
    refused("cut", &["cut/model.safetensors", "9000 bytes"]);
    cut(&model_copy(dir, "nothing").join("model.safetensors"), 0);
    refused("nothing", &["nothing/model.safetensors", "0 bytes"]);
    fs::remove_file(model_copy(dir, "weightless").join("model.safetensors")).unwrap();
    refused("weightless", &["weightless", "model.safetensors"]);
    cut(&model_copy(dir, "words").join("tokenizer.json"), 2000);
    refused("words", &["words/tokenizer.json"]);
    fs::remove_file(model_copy(dir, "wordless").join("tokenizer.json")).unwrap();
    refused("wordless", &["wordless", "tokenizer.json"]);
    cut(&model_copy(dir, "config").join("config.json"), 30);
    refused("config", &["config/config.json", "not JSON"]);
    let copy = model_copy(dir, "family");
    replace_in(&copy.join("config.json"), "\"llama\"", "\"unheard_of\"");
    refused("family", &["model_type is unheard_of", "gpt2, llama"]);
    assert!(!dir.join("out").exists(), "a run was begun");
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    pretrain(dir, "larger", &["tokenizer.vocab_size=340"]);
    let tokenizer = newest_checkpoint(&dir.join("larger")).join("tokenizer.json");
    let copy = model_copy(dir, "mixed");
    fs::copy(&tokenizer, copy.join("tokenizer.json")).unwrap();
    let says = ["mixed", "the model's vocabulary 300"];
    fails(dir, &["generate", "mixed", "-p", "x"], &says);
    fails(dir, &["chat", "mixed", "-p", "x"], &says);
    let labels = checkpoint_copy(dir, "labels", "labels");
    fs::copy(&tokenizer, labels.join("tokenizer.json")).unwrap();
    fails(
        dir,
        &["classify", "labels", "-t", "lovely glass"],
        &["labels", "the model's vocabulary 300"],
    );
}

#[test]
fn a_model_without_the_tokens_of_a_chat_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    write_chat(dir, 20);
    let copy = model_copy(dir, "mute");
    replace_in(&copy.join("tokenizer.json"), "<|end|>", "<|fin|>");
    fails(dir, &["chat", "mute", "-p", "hello"], &["looking for a chat template", "chatml"]);
    let args = ["finetune", "--model", "mute", "--data", "chat.jsonl", "--out", "out"];
    fails(dir, &args, &["looking for a chat template", "chatml"]);
    assert!(succeeds(dir, &["generate", "mute", "-p", "hello", "-n", "3"]).starts_with("hello"));
}

#[test]
fn prompts_that_do_not_fit_are_refused() {
    let dir = shared();
    let long = "glass 1234 ".repeat(50);
    fails(dir, &["generate", "base", "-p", &long], &["the prompt has", "context is 64"]);
    fails(dir, &["generate", "base", "-p", ""], &["the prompt is empty"]);
    fails(dir, &["chat", "base", "-p", &long], &["the prompt has", "context is 64"]);
    // A line that does not fit gives an error, and the conversation continues.
    let mut chat = lehr(dir);
    chat.args(["chat", "base", "--json", "-n", "3", "--temperature", "0"]);
    let ran = finish(chat, format!("{long}\nglass\n").as_bytes());
    assert_eq!((ran.code, json_lines(&ran.out).len()), (Some(1), 1), "{ran:#?}");
    assert!(ran.err.contains("the prompt has"), "{ran:#?}");
    // The largest number of new tokens is no number to add to.
    succeeds(dir, &["generate", "base", "-p", "x", "-n", &u64::MAX.to_string()]);
}

#[test]
fn impossible_sampling_is_refused() {
    let dir = shared();
    for command in ["generate", "chat"] {
        for (flag, says) in [
            ("--temperature=-1", "temperature is -1"),
            ("--temperature=nan", "temperature is NaN"),
            ("--top-p=0", "top_p is 0"),
            ("--top-p=1.5", "top_p is 1.5"),
            ("--min-p=2", "min_p is 2"),
            ("--repetition-penalty=0", "repetition_penalty is 0"),
        ] {
            fails(dir, &[command, "base", "-p", "x", flag], &[says]);
        }
    }
}

#[test]
fn what_embed_cannot_do_is_said() {
    let dir = shared();
    let many: Vec<&str> = (0..11).flat_map(|_| ["-t", "x"]).collect();
    fails(dir, &[&["embed", "base"][..], &many].concat(), &["11 texts are too many", "--json"]);
    fails(
        dir,
        &["embed", "base", "-t", "x", "--out", "v.csv"],
        &["v.csv", ".safetensors or .jsonl"],
    );
    fails(dir, &["embed", "base"], &["there is no text", "-t TEXT"]);
    fails(dir, &["embed", "base", "--data", "nothing.txt"], &["nothing.txt"]);
    fails(dir, &["embed", "nothing", "-t", "x"], &["nothing", "no such file"]);
    fails(dir, &["embed", "base", "-t", "x", "--out", "no/v.jsonl"], &["no/v.jsonl"]);
}

#[test]
fn what_is_no_classifier_and_what_is_no_text_is_refused() {
    let dir = shared();
    fails(dir, &["classify", "base", "-t", "x"], &["not a classifier", "lehr finetune"]);
    let mut command = lehr(dir);
    command.args(["classify", "labels"]);
    check_failure(&finish(command, b"lovely glass\n\xff\xfe\n"), &["reading a text"]);
}

#[test]
fn verify_refuses_what_does_not_belong_together() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let golden = |name: &str| {
        let found = model_goldens().into_iter().find(|golden| golden.ends_with(name));
        found.unwrap().display().to_string()
    };
    let [gpt2, llama, bert] = ["gpt2", "llama", "bert"].map(golden);
    let golden = format!("{gpt2}/golden.safetensors");
    fails(dir, &["verify", &llama, &golden], &["belongs to no parameter"]);
    let weights = format!("{llama}/model.safetensors");
    fails(dir, &["verify", &llama, &weights], &["model.safetensors", "`input_ids` is missing"]);
    // A classifier's weights hold an encoder without the head that gives logits of tokens.
    let classifier = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lehr-model/tests/classifier");
    let classifier = classifier.display().to_string();
    let file = |folder: &str| format!("{folder}/golden.safetensors");
    let says = ["computing logits", "hold no language-model head"];
    fails(dir, &["verify", &classifier, &file(&classifier)], &says);
    fails(dir, &["verify", &classifier, &file(&bert)], &["input_ids has", "ids are 0..50"]);
    write(dir, "text.safetensors", "this is text, not tensors");
    fails(dir, &["verify", &llama, "text.safetensors"], &["text.safetensors"]);
}

#[test]
fn too_little_memory_is_told_in_bytes() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    write_text(dir, 300);
    let sets = ["model.hidden_size=64", "train.batch_size=64", "train.seq_len=64"];
    let mut command = lehr(dir);
    command.args(tiny("text.txt", "out", &sets)).env("LEHR_MEMORY_GB", "0.004");
    check_failure(&finish(command, b""), &["allocating", "bytes", "LEHR_MEMORY_GB"]);
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_keeps_the_state_before() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    write_text(dir, 300);
    let sets = ["optimizer.lr=1e30", "optimizer.clip_norm=0", "schedule.warmup_steps=0"];
    fails(dir, &tiny("text.txt", "out", &sets), &["step 1", "optimizer.lr", "out/debug-step-1"]);
    assert!(dir.join("out/debug-step-1/manifest.json").is_file());
}

#[test]
fn places_that_cannot_be_written_are_named() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    write_text(dir, 300);
    fails(dir, &tiny("text.txt", "text.txt/run", &[]), &["text.txt/run"]);
    // Standard output on a full disk.
    let mut command = lehr(shared());
    command.args(["generate", "base", "-p", "x", "-n", "4"]);
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = command.stdout(Stdio::from(full)).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.starts_with("error: writing to standard output: No space left"), "{err}");
    assert!(err.contains("hint: ") && !err.contains("panicked"), "{err}");
}

/// Runs `lehr` where no file may become larger than `kib`: what a full disk does, without one.
fn with_file_limit(dir: &Path, kib: u32, args: &[&str]) -> common::Ran {
    // The signal is ignored, so that the program gets the error, as it would from a full disk.
    let script = format!("trap '' XFSZ; ulimit -f {kib}; exec \"$0\" \"$@\"");
    let mut command = Command::new("bash");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_lehr")]).args(args);
    command.current_dir(dir).stdout(Stdio::piped()).stderr(Stdio::piped());
    finish(command, b"")
}

#[test]
fn on_a_full_disk_a_run_stops_keeps_what_was_saved_and_goes_on_later() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    write_text(dir, 300);
    let sets = ["train.steps=600", "checkpoint.every_steps=100"];
    succeeds(dir, &tiny("text.txt", "whole", &sets));
    // The metrics outgrow the limit, long after the first checkpoint.
    let size = |path: PathBuf| fs::metadata(path).unwrap().len();
    let checkpoint = fs::read_dir(newest_checkpoint(&dir.join("whole"))).unwrap();
    let largest = checkpoint.map(|entry| size(entry.unwrap().path())).max().unwrap();
    let limit = largest.div_ceil(1024) + 1;
    let metrics = size(dir.join("whole/metrics.jsonl"));
    assert!(metrics > 1024 * limit + 5000, "{metrics} bytes of metrics fit into {limit} KiB");
    let ran = with_file_limit(dir, limit as u32, &tiny("text.txt", "full", &sets));
    check_failure(&ran, &["full/metrics.jsonl", "File too large", "free some space"]);
    assert!(newest_checkpoint(&dir.join("full")).join("manifest.json").is_file());
    succeeds(dir, &["pretrain", "--resume", "full"]);
    let [full, whole] = ["full", "whole"].map(|run| weights_and_moments(&dir.join(run)));
    assert!(full == whole, "the interrupted run ended with other bits");
}

#[test]
fn a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_one_before() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    pretrain(dir, "base", &[]);
    let before = snapshot(&dir.join("base/checkpoints"));
    let args = ["finetune", "--model", "base", "--data", "text.txt", "--out", "more"];
    let sets = ["train.steps=2", "schedule.warmup_steps=1"];
    let args = with_sets(&args, &sets);
    let ran = with_file_limit(dir, 32, &args);
    check_failure(&ran, &["more/checkpoints", "File too large", "free some space"]);
    assert!(snapshot(&dir.join("base/checkpoints")) == before);
    fails(dir, &["generate", "more", "-p", "x"], &["no whole checkpoint yet"]);
    succeeds(dir, &args);
    succeeds(dir, &["generate", "more", "-p", "x", "-n", "2"]);
}

#[test]
fn settings_of_the_engine_are_not_passed_over() {
    let scratch = tempfile::tempdir().unwrap();
    for (key, value, expected) in [
        ("LEHR_ISA", "avx9", "scalar"),
        ("LEHR_THREADS", "0", "at least 1"),
        ("LEHR_MEMORY_GB", "much", "gibibytes"),
    ] {
        let mut command = lehr(scratch.path());
        command.args(["inspect", "nowhere"]).env(key, value);
        let ran = finish(command, b"");
        check_failure(&ran, &[key, value, expected, "unset"]);
    }
    let ran = run(scratch.path(), &["inspect", "nowhere"]);
    check_failure(&ran, &["nowhere"]);
    let ran = run(scratch.path(), &["eval", "x", "--data", "y", "--threads", "0"]);
    assert!(ran.code == Some(2) && ran.err.contains("--threads"), "{ran:#?}");
}
