//! Every command that opens a model of a run checks its newest checkpoint, hashes included, and a
//! run that continues in another folder finds its data.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;

use common::{fails, pretrain, run, succeeds, write_text};

#[test]
fn a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    pretrain(dir, "base", &["checkpoint.every_steps=2"]);
    let newest = "base/checkpoints/step-4";
    let path = dir.join(newest).join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.len() - 3;
    let uses: [&[&str]; 6] = [
        &["generate", "base", "-p", "After", "-n", "1"],
        &["eval", "base", "--data", "text.txt"],
        &["inspect", "base"],
        &["convert", "base", "--to", "copy.gguf", "--format", "f32"],
        &["bench", "decode", "base", "--prompt", "8", "--new", "2", "--rounds", "1"],
        &["finetune", "--model", "base", "--data", "text.txt", "--out", "tuned", "--dry-run"],
    ];
    // A flipped bit keeps the size; a cut file does not.
    bytes[at] ^= 1;
    let cut = bytes[..at].to_vec();
    for (bad, case) in [(bytes, "a flipped bit"), (cut, "a cut file")] {
        fs::write(&path, bad).unwrap();
        for command in uses {
            let ran = run(dir, command);
            assert_eq!(ran.code, Some(0), "{case}: {ran:#?}");
            for part in
                ["warning: passing over the damaged checkpoint", newest, "model.safetensors"]
            {
                assert!(ran.err.contains(part), "{case}: not said: {part:?}: {ran:#?}");
            }
            let _ = fs::remove_file(dir.join("copy.gguf"));
        }
        // A checkpoint that was asked for by name is not replaced by another.
        fails(dir, &["generate", newest, "-p", "After"], &["model.safetensors", "damaged"]);
    }
    fs::write(dir.join("base/checkpoints/step-2/config.json"), "{}").unwrap();
    fails(dir, &["generate", "base", "-p", "After"], &["no whole checkpoint: 2 damaged"]);
}

#[test]
fn a_run_that_continues_in_another_folder_finds_its_data_or_says_what_is_missing() {
    let scratch = tempfile::tempdir().unwrap();
    let home = scratch.path().join("home");
    let away = scratch.path().join("away");
    fs::create_dir_all(&home).unwrap();
    fs::create_dir_all(&away).unwrap();
    pretrain(&home, "base", &["checkpoint.every_steps=2"]);
    let newest = home.join("base/checkpoints/step-4");
    fs::remove_dir_all(&newest).unwrap();
    let resume = ["pretrain", "--resume", "../home/base"];
    let data = home.join("text.txt").display().to_string();
    let said = succeeds(&away, &resume);
    assert!(said.contains(&data) && said.contains("continued at step 2"), "{said}");
    // The run still belongs to the folder in which its data is.
    let state = fs::read_to_string(newest.join("state.json")).unwrap();
    assert!(state.contains(&format!("\"folder\": \"{}\"", home.display())), "{state}");
    // A file of the same name with other contents is not taken for the data.
    write_text(&away, 200);
    let said = succeeds(&away, &resume);
    assert!(said.contains(&data), "{said}");
    let text = fs::read(&data).unwrap();
    fs::remove_file(&data).unwrap();
    fails(&away, &resume, &["training data text.txt", "have changed"]);
    fs::remove_file(away.join("text.txt")).unwrap();
    fails(&away, &resume, &["training data", "there is no", "away/text.txt", &data]);
    // The data may have moved with the user.
    fs::write(away.join("text.txt"), text).unwrap();
    succeeds(&away, &resume);
}
