//! Every command on small models: what is printed, and what can be done with what is left.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use common::{
    copy_folder, fails, finish, json_lines, lehr, model_goldens, newest_checkpoint, one_json,
    pretrain, run, succeeds, weights_and_moments, write_chat, write_text,
};
use serde_json::Value;
use tempfile::TempDir;

/// A folder with the pre-trained model `base`; tests only read it.
fn shared() -> &'static Path {
    static SHARED: OnceLock<TempDir> = OnceLock::new();
    let scratch = SHARED.get_or_init(|| {
        let scratch = tempfile::tempdir().unwrap();
        pretrain(scratch.path(), "base", &["sample.prompts=[\"After\"]"]);
        scratch
    });
    scratch.path()
}

#[test]
fn every_golden_model_is_verified() {
    let dir = tempfile::tempdir().unwrap();
    for golden in model_goldens() {
        let (model, file) = (golden.display().to_string(), golden.join("golden.safetensors"));
        let file = file.display().to_string();
        let said = succeeds(dir.path(), &["verify", &model, &file]);
        assert!(said.contains("all equal the reference") && !said.contains("FAILED"), "{said}");
        let json = one_json(&succeeds(dir.path(), &["verify", &model, &file, "--json"]));
        assert_eq!(json["passed"], true);
        let checks = json["checks"].as_array().unwrap();
        // The references of these have no continuation: an encoder cannot, and the published code
        // of the others is too old to run its own.
        let last = match golden.file_name().unwrap().to_str().unwrap() {
            "bert" => vec!["hidden"],
            "chatglm-6b" | "chatglm2-6b" => vec!["cached"],
            _ => vec!["greedy", "cached"],
        };
        for item in [vec!["logits", "loss"], last].concat() {
            assert!(checks.iter().any(|c| c["item"] == item), "{model}: no {item}");
        }
        assert!(
            checks.iter().filter(|c| c["item"].as_str().unwrap().starts_with("grad.")).count() > 10
        );
    }
}

#[test]
fn a_changed_weight_does_not_verify() {
    let scratch = tempfile::tempdir().unwrap();
    for golden in model_goldens() {
        let copy = scratch.path().join(golden.file_name().unwrap());
        copy_folder(&golden, &copy);
        let weights = copy.join("model.safetensors");
        let mut bytes = fs::read(&weights).unwrap();
        // The signs of the last quarter of the file's numbers: some models do not use every one.
        let n = bytes.len() / 16 * 4;
        let start = bytes.len() - n;
        bytes[start..].chunks_exact_mut(4).for_each(|number| number[3] ^= 0x80);
        fs::write(&weights, bytes).unwrap();
        let (model, file) = (copy.display().to_string(), copy.join("golden.safetensors"));
        let ran = run(scratch.path(), &["verify", &model, &file.display().to_string(), "--json"]);
        assert_eq!(ran.code, Some(1), "{ran:#?}");
        assert_eq!(one_json(&ran.out)["passed"], false);
    }
}

#[test]
fn a_fitted_run_leaves_a_recipe_that_runs_again_to_the_same_bits() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    write_text(dir, 300);
    // Nothing but data and time: the whole recipe is fitted.
    let said = succeeds(dir, &["pretrain", "--data", "text.txt", "--minutes", "0.0005"]);
    assert!(said.contains("fitted: ") && said.contains("next: lehr generate runs/text"), "{said}");
    let run = dir.join("runs/text");
    for name in ["recipe.toml", "metrics.jsonl", "samples.jsonl", "report.html"] {
        assert!(fs::metadata(run.join(name)).unwrap().len() > 0, "{name}");
    }
    let report = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(report.contains("Loss") && report.contains("<svg"), "the report has no curves");
    succeeds(dir, &["pretrain", "runs/text/recipe.toml", "--out", "again"]);
    assert!(weights_and_moments(&dir.join("again")) == weights_and_moments(&run));
    // The same command again finds the run finished.
    let before = weights_and_moments(&run);
    let said = succeeds(dir, &["pretrain", "--data", "text.txt"]);
    assert!(said.contains("continuing the run in runs/text"), "{said}");
    let again = ["pretrain", "--data", "text.txt", "--minutes", "9"];
    let ran = common::run(dir, &again);
    assert!(ran.code == Some(0) && ran.err.contains("--minutes 9 changes nothing"), "{ran:#?}");
    assert!(weights_and_moments(&run) == before);
    // A setting that the run does not have makes it another run, and the setting is named.
    let other = [&again[..3], &["--set", "optimizer.beta2=0.5"]].concat();
    fails(dir, &other, &["another recipe", "optimizer.beta2 is 0.95 instead of 0.5", "--out"]);
    succeeds(dir, &["pretrain", "runs/text/recipe.toml", "--out", "seed", "--seed", "7"]);
    assert!(weights_and_moments(&dir.join("seed")) != before, "the seed was ignored");
}

#[test]
fn a_dry_run_prints_the_recipe_and_writes_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    write_text(dir, 100);
    let args = ["pretrain", "--data", "text.txt", "--dry-run", "--set", "optimizer.lr=0.125"];
    let recipe = succeeds(dir, &args);
    assert!(recipe.contains("lr = 0.125") && recipe.contains("[schedule]"), "{recipe}");
    assert!(recipe.contains("dir = \"runs/text\""), "{recipe}");
    // Names that differ give directories that differ.
    fs::copy(dir.join("text.txt"), dir.join("my.v1.txt")).unwrap();
    let recipe = succeeds(dir, &["pretrain", "--data", "my.v1.txt", "--dry-run"]);
    assert!(recipe.contains("dir = \"runs/my.v1\""), "{recipe}");
    fs::remove_file(dir.join("my.v1.txt")).unwrap();
    assert_eq!(fs::read_dir(dir).unwrap().count(), 1);
}

#[test]
fn a_plan_shows_model_tokens_time_and_memory_and_trains_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    write_text(dir, 300);
    let by_depth = ["plan", "--data", "text.txt", "--depth", "1", "--set", "train.steps=7"];
    let plan = one_json(&succeeds(dir, &[&by_depth[..], &["--json"]].concat()));
    let number = |key: &str| plan[key].as_u64().unwrap();
    assert_eq!(number("steps"), 7);
    assert_eq!(number("tokens"), 7 * number("tokens_per_step"));
    // A block of width 64 has 12 d² numbers, and each id a row in two tables or more.
    assert!(number("parameters") > 12 * 64 * 64 + 2 * 512 * 64, "{plan}");
    assert!(number("memory_bytes") > 4 * number("parameters"), "{plan}");
    assert!(plan["seconds"].as_f64().unwrap() > 0.0);
    let recipe = plan["recipe"].as_str().unwrap();
    assert!(recipe.contains("n_layers = 1") && recipe.contains("hidden_size = 64"), "{recipe}");
    let text = succeeds(dir, &by_depth);
    for name in ["parameters", "memory for tensors", "steps take", "7 steps of"] {
        assert!(text.contains(name), "{name}: {text}");
    }
    let wide = [&by_depth[..], &["--set", "model.hidden_size=128", "--json"]].concat();
    assert!(one_json(&succeeds(dir, &wide))["parameters"].as_u64().unwrap() > number("parameters"));
    // What a recipe says in full is that which pretrain prints.
    let dry = ["pretrain", "--data", "text.txt", "--depth", "1", "--set", "train.steps=7"];
    assert_eq!(succeeds(dir, &[&dry[..], &["--dry-run"]].concat()), recipe);
    fails(dir, &["plan", "--data", "text.txt", "--depth", "0"], &["--depth is 0"]);
    let twice = [&by_depth[..], &["--set", "model.n_layers=2"]].concat();
    fails(dir, &twice, &["--depth and --set model.n_layers are both given"]);
    fails(dir, &["plan", "--data", "none.txt"], &["none.txt"]);
    assert_eq!(fs::read_dir(dir).unwrap().count(), 1, "something was written");
}

/// Changes one value in a JSON file, or in the last line of a JSONL file.
fn set_number(path: &Path, keys: &[&str], value: f64) {
    let text = fs::read_to_string(path).unwrap();
    let is_lines = path.extension().is_some_and(|e| e == "jsonl");
    let begin = if is_lines { text.trim_end().rfind('\n').map_or(0, |at| at + 1) } else { 0 };
    let mut json: Value = serde_json::from_str(&text[begin..]).unwrap();
    keys.iter().fold(&mut json, |json, key| &mut json[*key]).clone_from(&value.into());
    fs::write(path, format!("{}{json}\n", &text[..begin])).unwrap();
}

#[test]
fn finished_runs_predict_the_loss_of_another() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    write_text(dir, 300);
    let sized = ["--data", "text.txt", "--depth", "1", "--set", "train.steps=3"];
    succeeds(dir, &[&["pretrain", "--plain", "--out", "law/1"], &sized[..]].concat());
    let plan = [&["plan"], &sized[..]].concat();
    let planned = one_json(&succeeds(dir, &[&plan[..], &["--json"]].concat()));
    let (weights, tokens) =
        (planned["weights"].as_f64().unwrap(), planned["tokens"].as_f64().unwrap());
    assert_eq!(planned["bits_per_byte"], Value::Null);
    let first = fs::read_to_string(dir.join("law/1/metrics.jsonl")).unwrap();
    assert!(json_lines(&first)[2]["eval"]["bits_per_byte"].as_f64().unwrap() > 1.0, "{first}");

    // Runs 8, 4, 2 and 1.5 times smaller, whose loss follows a law exactly.
    let bits = |share: f64| 1.25 + 0.75 * (share * share).powf(-0.2);
    let runs = ["law/1", "law/2", "law/3", "law/4"];
    for (run, share) in runs.iter().zip([0.125, 0.25, 0.5, 1.0 / 1.5]) {
        let path = dir.join(run);
        if *run != "law/1" {
            fs::create_dir(&path).unwrap();
            for name in ["recipe.toml", "prediction.json", "metrics.jsonl"] {
                fs::copy(dir.join("law/1").join(name), path.join(name)).unwrap();
            }
        }
        set_number(&path.join("prediction.json"), &["weights"], share * weights);
        set_number(&path.join("prediction.json"), &["tokens"], share * tokens);
        set_number(&path.join("metrics.jsonl"), &["eval", "bits_per_byte"], bits(share));
    }
    let by_law = [&plan[..], &["--law"], &runs[..]].concat();
    let planned = one_json(&succeeds(dir, &[&by_law[..], &["--json"]].concat()));
    assert!((planned["bits_per_byte"].as_f64().unwrap() - 2.0).abs() < 2e-3, "{planned}");
    let text = succeeds(dir, &by_law);
    assert!(text.contains("2.000 of held-out text, predicted"), "{text}");
    // The run itself has it in its report.
    let train = [&["pretrain", "--plain", "--out", "next"], &by_law[1..]].concat();
    assert!(succeeds(dir, &train).contains("bits per byte at the end, by 1.2"));
    let predicted = fs::read_to_string(dir.join("next/prediction.json")).unwrap();
    let predicted = one_json(&predicted.replace('\n', ""))["bits_per_byte"].as_f64().unwrap();
    // The same command continues the run, which has its plan already.
    let again = run(dir, &train);
    assert!(again.err.contains("warning: --law changes nothing"), "{again:#?}");
    let report = fs::read_to_string(dir.join("next/report.html")).unwrap();
    let row = report.split("held-out bits per byte").nth(1).unwrap();
    let row = row.split("</tr>").next().unwrap();
    assert!((predicted - 2.0).abs() < 2e-3 && row.contains(&format!("{predicted:.3}")), "{row}");

    fails(dir, &by_law[..by_law.len() - 1], &["3 runs for a law, expected 4 or more"]);
    set_number(&dir.join("law/3/prediction.json"), &["tokens"], 9.0 * tokens);
    fails(dir, &by_law, &["law/3 has ", "tokens per weight", "--tokens-per-weight"]);
    fs::remove_file(dir.join("law/2/prediction.json")).unwrap();
    fails(dir, &by_law, &["the run in law/2 has no plan with weights and tokens"]);
    let lines: Vec<_> = first.lines().take(2).collect();
    fs::write(dir.join("law/1/metrics.jsonl"), lines.join("\n")).unwrap();
    fails(dir, &by_law, &["has made 2 of its 3 steps", "--resume law/1"]);
}

#[test]
fn events_of_a_run_are_json_if_asked_for() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    write_text(dir, 300);
    let mut args =
        common::pretrain_args("out", 4, &["sample.prompts=[\"After\"]", "eval.every_steps=2"]);
    args.push("--json".to_owned());
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let events = json_lines(&succeeds(dir, &args));
    let count = |name: &str| events.iter().filter(|e| e["event"] == name).count();
    let found = ["started", "step", "eval", "sample", "saved"].map(count);
    assert_eq!(found, [1, 4, 2, 1, 1]);
    let losses = events.iter().filter_map(|e| e["metrics"]["loss"].as_f64());
    assert!(losses.clone().count() == 4 && losses.clone().all(|l| l > 0.0 && l < 10.0));
    assert_eq!(json_lines(&fs::read_to_string(dir.join("out/metrics.jsonl")).unwrap()).len(), 4);
}

#[test]
fn generation_is_the_same_for_the_same_seed() {
    let dir = shared();
    let generate = |more: &[&str]| {
        let args = [&["generate", "base", "-p", "After 7 days", "-n", "12"], more].concat();
        succeeds(dir, &args)
    };
    let greedy = generate(&["--greedy"]);
    assert!(greedy.starts_with("After 7 days") && greedy.ends_with('\n'), "{greedy:?}");
    assert_eq!(generate(&["--greedy"]), greedy);
    assert_eq!(generate(&["--greedy", "--threads", "1"]), greedy);
    let hot = ["--temperature", "1.5", "--top-p", "1", "--seed", "1"];
    assert_eq!(generate(&hot), generate(&hot));
    let seeds = ["2", "3", "4"].map(|seed| generate(&[&hot[..5], &[seed]].concat()));
    assert!(seeds.iter().any(|text| *text != generate(&hot)), "the seed changes nothing");
    let json = one_json(&generate(&["--json", "--greedy"]));
    assert_eq!(format!("After 7 days{}\n", json["text"].as_str().unwrap()), greedy);
    assert_eq!(json["finish"], "length");
    assert_eq!(json["ids"].as_array().unwrap().len(), 12);
    assert!(json["prompt_tokens"].as_u64().unwrap() > 0);
}

#[test]
fn a_model_is_found_by_its_run_and_by_its_checkpoint() {
    let dir = shared();
    let checkpoint = newest_checkpoint(&dir.join("base")).display().to_string();
    let generate =
        |model: &str| succeeds(dir, &["generate", model, "-p", "The", "--greedy", "-n", "8"]);
    assert_eq!(generate(&checkpoint), generate("base"));
    assert_eq!(generate("base/"), generate("base"));
}

#[test]
fn conversations_are_learnt_and_chat_answers_every_line() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    write_chat(dir, 40);
    let base = shared().join("base").display().to_string();
    let args = ["finetune", "--model", &base, "--data", "chat.jsonl", "--out", "chat"];
    let said = succeeds(
        dir,
        &[&args[..], &["--set", "train.steps=3", "--set", "schedule.warmup_steps=1"]].concat(),
    );
    assert!(said.contains("next: lehr chat chat"), "{said}");
    let chat = |more: &[&str], input: &str| {
        let mut command = lehr(dir);
        command.args(["chat", "chat", "-n", "5", "--greedy"]).args(more);
        let ran = finish(command, input.as_bytes());
        assert_eq!(ran.code, Some(0), "{ran:#?}");
        ran
    };
    let questions = "Who are you?\n\nIs the glass clear?\nGoodbye\n";
    let answers = json_lines(&chat(&["--json"], questions).out);
    let asked: Vec<_> = answers.iter().map(|a| a["question"].as_str().unwrap()).collect();
    assert_eq!(asked, ["Who are you?", "Is the glass clear?", "Goodbye"]);
    assert!(answers.iter().all(|a| a["answer"].is_string() && a["finish"].is_string()));
    // For people: the answers alone, each with a line break at its end.
    let shown = chat(&[], questions).out;
    let text: String =
        answers.iter().map(|a| format!("{}\n", a["answer"].as_str().unwrap())).collect();
    assert_eq!(shown, text);
    let one = one_json(&chat(&["--json", "-p", "Who are you?"], "").out);
    assert_eq!(one["answer"], answers[0]["answer"]);
    // More turns than the context of 64 tokens holds.
    let long = chat(&[], &"How did the lens come out?\n".repeat(12));
    assert!(long.err.contains("oldest messages are forgotten"), "{long:#?}");
}

/// A tiny encoder in the files of sentence-transformers.
fn encoder() -> String {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lehr-infer/tests/embedder");
    dir.canonicalize().unwrap().display().to_string()
}

#[test]
fn texts_become_vectors_in_every_form_of_output() {
    let scratch = tempfile::tempdir().unwrap();
    let (dir, model) = (scratch.path(), encoder());
    let texts = ["the glass cools", "", "玻璃"];
    let args: Vec<&str> = texts.iter().flat_map(|text| ["-t", text]).collect();
    let embed = |more: &[&str]| succeeds(dir, &[&["embed", &model], more].concat());
    let records = json_lines(&embed(&[&args[..], &["--json"]].concat()));
    assert_eq!(records.len(), 3);
    let vector = |record: &Value| -> Vec<f64> {
        let numbers = record["embedding"].as_array().unwrap();
        numbers.iter().map(|n| n.as_f64().unwrap()).collect()
    };
    for (record, text) in records.iter().zip(texts) {
        assert_eq!(record["text"], text);
        let length: f64 = vector(record).iter().map(|x| x * x).sum();
        assert!(vector(record).len() == 32 && (length - 1.0).abs() < 1e-6);
    }
    // Lines of standard input.
    let mut command = lehr(dir);
    command.args(["embed", &model, "--json"]);
    let ran = finish(command, "the glass cools\n\n玻璃\n".as_bytes());
    assert_eq!(json_lines(&ran.out), records, "{ran:#?}");
    // For people.
    let shown = embed(&args);
    let cosine = vector(&records[0]).into_iter().zip(vector(&records[2])).map(|(a, b)| a * b);
    assert!(shown.contains(&format!("{:6.2}", cosine.sum::<f64>())), "{shown}");
    assert!(shown.contains("32 numbers") && shown.lines().count() == 5, "{shown}");
    assert_eq!(shown.matches("  1.00").count(), 3, "{shown}");
    // Files: what is blank has no vector, what is there has its name.
    fs::write(dir.join("in.jsonl"), "{\"text\":\"the glass cools\"}\n{\"text\":\" \"}\n").unwrap();
    assert!(embed(&["--data", "in.jsonl", "--out", "v.jsonl"]).starts_with("1 vectors of 32"));
    let written = one_json(&fs::read_to_string(dir.join("v.jsonl")).unwrap());
    assert_eq!(written["embedding"], records[0]["embedding"]);
    embed(&["--data", "in.jsonl", "--out", "v.safetensors", "--json"]);
    let bytes = fs::read(dir.join("v.safetensors")).unwrap();
    let header = String::from_utf8_lossy(&bytes);
    assert!(header.contains("\"embeddings\"") && header.contains("in.jsonl:1"), "{header}");
    let first = f32::from_le_bytes(*bytes[bytes.len() - 128..].first_chunk().unwrap());
    assert_eq!(f64::from(first), vector(&records[0])[0]);
    // A decoder gives vectors too, of its last token.
    let shown = succeeds(shared(), &["embed", "base", "-t", "glass", "-t", ""]);
    assert!(shown.contains("16 numbers, the last token"), "{shown}");
    let cut =
        run(dir, &["embed", &model, "-t", &"no ".repeat(30), "-t", "no", "--max-tokens", "9"]);
    assert!(cut.err.contains("1 of 2 texts are longer than 9 tokens"), "{cut:#?}");
}

#[test]
fn an_encoder_learns_labels_and_refuses_what_decoders_do() {
    let scratch = tempfile::tempdir().unwrap();
    let (dir, model) = (scratch.path(), encoder());
    // Its tokens are letters, and it takes 40 of them.
    let line = |i: usize| match i % 2 {
        0 => format!("{{\"text\":\"lens {i} is lovely\",\"label\":\"good\"}}\n"),
        _ => format!("{{\"text\":\"lens {i} is cracked\",\"label\":\"bad\"}}\n"),
    };
    fs::write(dir.join("labelled.jsonl"), (0..60).map(line).collect::<String>()).unwrap();
    let args = ["finetune", "--model", &model, "--data", "labelled.jsonl", "--out", "labels"];
    let sets = ["train.steps=60", "schedule.warmup_steps=6", "optimizer.lr=0.01"];
    let sets: Vec<_> = sets.into_iter().flat_map(|set| ["--set", set]).collect();
    let said = succeeds(dir, &[&args[..], &sets].concat());
    assert!(said.contains("accuracy") && said.contains("next: lehr classify labels"), "{said}");
    let lines = succeeds(dir, &["classify", "labels", "-t", "lens is cracked", "-t", "lovely"]);
    let labels: Vec<_> = lines.lines().map(|line| line.split('\t').next().unwrap()).collect();
    assert_eq!(labels, ["bad", "good"]);
    let config = fs::read_to_string(newest_checkpoint(&dir.join("labels")).join("config.json"));
    assert!(config.unwrap().contains("BertForSequenceClassification"));
    // The classifier is an encoder still, and can be trained further.
    succeeds(dir, &["embed", "labels", "-t", "glass"]);
    let more = ["finetune", "--model", "labels", "--data", "labelled.jsonl", "--out", "more"];
    succeeds(
        dir,
        &[&more[..], &["--set", "train.steps=1", "--set", "schedule.warmup_steps=1"]].concat(),
    );
    write_text(dir, 40);
    write_chat(dir, 20);
    for args in [
        &["generate", &model, "-p", "x"][..],
        &["chat", &model, "-p", "x"],
        &["finetune", "--model", &model, "--data", "text.txt", "--out", "out"],
        &["finetune", "--model", &model, "--data", "chat.jsonl", "--out", "out"],
    ] {
        fails(dir, args, &["the model is an encoder (BertModel)", "lehr embed"]);
    }
    assert!(!dir.join("out").exists(), "a run was begun");
}

#[test]
fn more_text_continues_a_model() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    write_text(dir, 200);
    let base = shared().join("base").display().to_string();
    let args = ["finetune", "--model", &base, "--data", "text.txt", "--set", "train.steps=3"];
    let args = [&args[..], &["--set", "schedule.warmup_steps=1", "--json"]].concat();
    let events = json_lines(&succeeds(dir, &args));
    let first = events.iter().find_map(|e| e["metrics"]["loss"].as_f64()).unwrap();
    // A new model of 300 ids begins near ln 300 = 5.7.
    assert!(first < 5.65, "it began at {first}, as a new model would");
    assert!(dir.join("runs/text-finetuned/recipe.toml").is_file());
}

#[test]
fn the_training_benchmark_has_the_keys_of_its_peer() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["bench", "step", "--config", "tiny", "--steps", "1", "--warmup", "1", "--json"];
    let old = [&args[..], &["--activations", "recompute"]].concat();
    fails(dir.path(), &old, &["--activations recompute", "--activation-checkpointing none|"]);
    for arch in ["gpt", "llama"] {
        let json = one_json(&succeeds(dir.path(), &[&args[..], &["--arch", arch]].concat()));
        let number = |key: &str| json[key].as_f64().unwrap_or_else(|| panic!("no {key}: {json}"));
        for key in
            ["ms_median", "ms_min", "ms_max", "tok_s", "gflops", "first_step_s", "peak_rss_mb"]
        {
            assert!(number(key) > 0.0, "{key} is {}", number(key));
        }
        assert_eq!((number("B"), number("T"), number("steps")), (8.0, 256.0, 1.0));
        assert!(number("params") > 5e6 && number("flop_per_step") > 1e10);
        let first = number("loss_first");
        assert!((8.5..9.6).contains(&first), "the first loss is {first}, expected about ln 8192");
        assert_eq!((json["peer"].as_str(), json["arch"].as_str()), (Some("lehr"), Some(arch)));
        assert_eq!(json["activation_checkpointing"], "none");
        let (busy, threads) = (number("busy_cores"), number("threads"));
        assert!(busy >= 0.0 && threads >= 1.0);
    }
}
