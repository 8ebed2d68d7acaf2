//! `lehr generate --prompts`: many texts at once.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use common::{fails, json_lines, pretrain, run, succeeds, write};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder with the pre-trained model `base`; tests only read it.
fn shared() -> &'static Path {
    static SHARED: OnceLock<TempDir> = OnceLock::new();
    let scratch = SHARED.get_or_init(|| {
        let scratch = tempfile::tempdir().unwrap();
        pretrain(scratch.path(), "base", &[]);
        scratch
    });
    scratch.path()
}

#[test]
fn prompts_of_a_file_give_the_texts_of_each_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let base = shared().join("base").display().to_string();
    let prompts = ["After 7 days", "The", "glass 12 and more of it", "a", "Sand\u{e4} \"x\""];
    write(dir, "p.txt", format!("{}\r\n\n", prompts.join("\n")));
    let objects: String =
        prompts.iter().map(|p| format!("{}\n", json!({ "prompt": p, "id": 3 }))).collect();
    write(dir, "p.jsonl", objects);
    for settings in [&["--greedy"][..], &["--temperature", "1.3", "--seed", "5"]] {
        let generate = |more: &[&str]| {
            let args = [&["generate", &base, "-n", "12"], settings, more].concat();
            run(dir, &args)
        };
        let all = generate(&["--prompts", "p.txt", "--batch", "2"]);
        assert_eq!(all.code, Some(0), "{all:#?}");
        assert!(all.err.contains("5 texts, ") && all.err.contains("tokens/s"), "{all:#?}");
        let found: Vec<Value> = json_lines(&all.out);
        for (index, prompt) in prompts.iter().enumerate() {
            let mut one = vec!["-p", prompt, "--json"];
            let seed = (5 + index).to_string();
            if settings.len() > 1 {
                one.extend(["--seed", &seed]);
            }
            let settings = if settings.len() > 1 { &settings[..2] } else { settings };
            let args = [&["generate", &base, "-n", "12"], settings, &one].concat();
            let want = json_lines(&succeeds(dir, &args)).remove(0);
            let n_tokens = want["ids"].as_array().unwrap().len();
            let want = json!({
                "index": index, "prompt": prompt, "text": want["text"], "finish": want["finish"],
                "n_tokens": n_tokens,
            });
            assert_eq!(found[index], want);
        }
        assert_eq!(found.len(), prompts.len());
        for more in [
            &["--prompts", "p.jsonl"][..],
            &["--prompts", "p.txt", "--batch", "1"],
            &["--prompts", "p.txt", "--batch", "99", "--cache-tokens", "80"],
        ] {
            assert_eq!(generate(more).out, all.out, "{more:?}");
        }
        let to_file = generate(&["--prompts", "p.jsonl", "--output", "out.jsonl"]);
        assert_eq!((to_file.code, to_file.out.as_str()), (Some(0), ""));
        assert_eq!(fs::read_to_string(dir.join("out.jsonl")).unwrap(), all.out);
    }
}

#[test]
fn files_that_hold_no_prompts_are_refused_with_a_hint() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let base = shared().join("base").display().to_string();
    for (name, text, says) in [
        ("empty.txt", "\n  \n", "empty.txt: it has no prompts"),
        ("empty.jsonl", "", "empty.jsonl: it has no prompts"),
        ("kind.md", "x", "kind.md, expected a name that ends in .txt or .jsonl"),
        ("bad.jsonl", "{\"prompt\": \"a\"}\n{\n", "bad.jsonl, line 2: EOF"),
        ("none.jsonl", "{\"text\": \"a\"}\n", "none.jsonl, line 1: no \"prompt\""),
        ("number.jsonl", "\n{\"prompt\": 7}\n", "number.jsonl, line 2: \"prompt\" is 7"),
        ("blank.jsonl", "{\"prompt\": \"a\"}\n{\"prompt\": \"\"}\n", "prompt 2 of 2"),
        ("long.txt", &"glass 1234 ".repeat(50), "prompt 1 of 1: the prompt has"),
    ] {
        write(dir, name, text);
        fails(dir, &["generate", &base, "--prompts", name], &[says]);
    }
    fs::write(dir.join("bytes.txt"), [0xff, 0xfe, 0x41]).unwrap();
    fails(dir, &["generate", &base, "--prompts", "bytes.txt"], &["bytes.txt: it is not UTF-8"]);
    fails(dir, &["generate", &base, "--prompts", "nowhere.txt"], &["reading nowhere.txt"]);
    write(dir, "p.txt", "After 7 days\nThe\n");
    let all = ["generate", &base, "--prompts", "p.txt"];
    fails(dir, &[&all[..], &["--batch", "0"]].concat(), &["at most 0 at once"]);
    fails(dir, &[&all[..], &["--cache-tokens", "1", "-n", "50"]].concat(), &["room for 16"]);
    fails(dir, &[&all[..], &["--output", "p.txt"]].concat(), &["overwrite what is read"]);
    assert_eq!(fs::read_to_string(dir.join("p.txt")).unwrap(), "After 7 days\nThe\n");
    fails(dir, &[&all[..], &["--output", "no/where.jsonl"]].concat(), &["writing no/where.jsonl"]);
    fails(dir, &[&all[..], &["--top-p", "0"]].concat(), &["top_p is 0"]);
    for args in [
        &["-p", "x", "--prompts", "p.txt"][..],
        &["--prompts", "p.txt", "--json", "--logprobs", "2"],
        &["-p", "x", "--batch", "2"],
        &["-p", "x", "--output", "y"],
    ] {
        let ran = run(dir, &[&["generate", &base], args].concat());
        assert_eq!(ran.code, Some(2), "{ran:#?}");
    }
}

#[test]
fn an_output_never_replaces_what_is_read_and_waits_until_all_is_there() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    common::copy_folder(&common::newest_checkpoint(&shared().join("base")), &dir.join("model"));
    write(dir, "p.txt", "After 7 days\nThe\n");
    write(dir, "o.jsonl", "precious");
    fs::hard_link(dir.join("p.txt"), dir.join("same.txt")).unwrap();
    let before = common::snapshot(dir);
    let refused = |output: &str, more: &[&str], says: &str| {
        let args = ["generate", "model", "--prompts", "p.txt", "--output", output];
        fails(dir, &[&args, more].concat(), &[says]);
        assert!(common::snapshot(dir) == before, "{output} {more:?}: a file was changed");
    };
    for output in ["p.txt", "same.txt", "model/model.safetensors", "model/config.json"] {
        refused(output, &[], "overwrite what is read");
    }
    refused("model", &[], "is a folder");
    refused("o.jsonl", &["--cache-tokens", "1", "-n", "50"], "--cache-tokens has room");
    refused("o.jsonl", &["--context", "3"], "the context is 3");
    // An error in the middle: what was generated is beside, and the old file is untouched.
    // With it, the change below would be damage.
    fs::remove_file(dir.join("model/manifest.json")).unwrap();
    let weights = dir.join("model/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let header = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    bytes[header..].chunks_exact_mut(4).for_each(|x| x.copy_from_slice(&f32::NAN.to_le_bytes()));
    fs::write(&weights, bytes).unwrap();
    let args = ["generate", "model", "--prompts", "p.txt", "--output", "o.jsonl"];
    fails(dir, &args, &["o.jsonl.partial", "prompt 1 of 2", "logits are NaN"]);
    assert_eq!(fs::read_to_string(dir.join("o.jsonl")).unwrap(), "precious");
    let kept = json_lines(&fs::read_to_string(dir.join("o.jsonl.partial")).unwrap());
    assert_eq!(kept.len(), 2);
    assert!(kept[1]["error"].as_str().unwrap().contains("NaN"), "{kept:?}");
    fails(dir, &["generate", "model", "-p", "The"], &["logits are NaN", "--dtype f32"]);
    fails(dir, &["embed", "model", "-t", "The", "--json"], &["text 0 has NaN"]);
}

#[test]
fn the_benchmark_generates_one_and_many() {
    for batch in [1, 3] {
        let n = batch.to_string();
        let args = ["bench", "decode", "base", "--prompt", "9", "--new", "4", "--rounds", "1"];
        let args = [&args[..], &["--batch", &n, "--json"]].concat();
        let found = json_lines(&succeeds(shared(), &args)).remove(0);
        assert_eq!(found["batch"], json!(batch));
        assert!(found["decode_tok_s"].as_f64().is_some_and(|rate| rate > 0.0));
    }
}

#[test]
fn a_context_bounds_prompt_and_answer_and_says_so() {
    let base = shared().join("base").display().to_string();
    let generate = |more: &[&str]| {
        let args = ["generate", &base, "-p", "After 7 days", "--greedy"];
        run(shared(), &[&args, more].concat())
    };
    let one = json_lines(&generate(&["-n", "1", "--json"]).out).remove(0);
    let n_prompt = one["prompt_tokens"].as_u64().unwrap();
    let context = (n_prompt + 4).to_string();
    let full = json_lines(&generate(&["--context", &context, "--json"]).out).remove(0);
    assert_eq!(full["finish"], "context_full");
    // The last token is not run, so it needs no room.
    assert_eq!(full["ids"].as_array().unwrap().len(), 5);
    let said = generate(&["--context", &context]);
    assert_eq!(said.code, Some(0), "{said:#?}");
    assert!(
        said.err.contains(&format!("stopped: the context of {context} tokens is full")),
        "{said:#?}"
    );
    let short = generate(&["--context", &n_prompt.to_string()]);
    assert_eq!(short.code, Some(1), "{short:#?}");
    assert!(short.err.contains(&format!("the context is {n_prompt}")), "{short:#?}");
    assert!(short.err.contains("raise --context"), "{short:#?}");
    assert_eq!(generate(&["--context", "1"]).code, Some(2));
}
