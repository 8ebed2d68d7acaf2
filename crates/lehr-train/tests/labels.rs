//! Labels: their order and names come from the model, and a new set of labels starts a new head
//! only on request.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};

use common::{Watch, llama, recipe, run_watched};
use lehr_model::io;
use lehr_train::recipe::{DataConfig, ModelConfig, ObjectiveKind, TokenizerConfig};
use lehr_train::{Error, Recipe, Task, evaluate, prepare};
use serde_json::json;

/// A trained classifier of `good` and `bad`, whose labels are renamed to `names`, by row of the
/// head. Gives the recipe of its training and its folder.
fn classifier(scratch: &Path, names: [&str; 2]) -> (Recipe, PathBuf) {
    let mut trained = recipe(scratch, llama(32), ObjectiveKind::CLASSIFY);
    trained.train.steps = 40;
    trained.checkpoint.every_steps = 0;
    run_watched(&trained, Watch::default());
    let dir = trained.dir().join("checkpoints/step-40");
    let mut config = io::read_json(&dir.join("config.json")).unwrap();
    assert_eq!(config["id2label"], json!({ "0": "bad", "1": "good" }));
    config["id2label"] = json!({ "0": names[0], "1": names[1] });
    config["label2id"] = json!({ names[0]: 0, names[1]: 1 });
    io::write_json(&dir.join("config.json"), &config).unwrap();
    // With it, the change would be damage.
    std::fs::remove_file(dir.join("manifest.json")).unwrap();
    (trained, dir)
}

/// A recipe that continues the classifier in `dir` with the data of `like`, its labels renamed.
fn continued(like: &Recipe, dir: &Path, bad: &str, good: &str) -> Recipe {
    let text = std::fs::read_to_string(&like.data.path).unwrap();
    let renamed = text
        .replace("\"label\":\"good\"", &format!("\"label\":{good:?}"))
        .replace("\"label\":\"bad\"", &format!("\"label\":{bad:?}"));
    let path = Path::new(&like.data.path).with_file_name(format!("{bad}-{good}.jsonl"));
    std::fs::write(&path, renamed).unwrap();
    Recipe {
        data: DataConfig { path: path.display().to_string(), ..like.data.clone() },
        tokenizer: TokenizerConfig::Model,
        model: ModelConfig::Load { path: dir.display().to_string() },
        ..like.clone()
    }
}

fn noted(recipe: &Recipe) -> Result<(Task, String), Error> {
    let cache = Path::new(&recipe.data.path).with_file_name("cache");
    let mut notes = String::new();
    let task = prepare(recipe, &cache, &mut |note| notes += &format!("{note}\n"))?;
    Ok((task, notes))
}

fn id2label(task: &Task) -> serde_json::Value {
    task.objective.config_json()["id2label"].clone()
}

#[test]
fn labels_keep_the_order_of_the_model() {
    let scratch = tempfile::tempdir().unwrap();
    let (like, dir) = classifier(scratch.path(), ["zeta", "alpha"]);
    let (task, _) = noted(&continued(&like, &dir, "zeta", "alpha")).unwrap();
    assert_eq!(id2label(&task), json!({ "0": "zeta", "1": "alpha" }));
    let right = |task: &Task| {
        evaluate(task.objective.as_ref(), task.train.as_ref(), 8).unwrap().accuracy.unwrap()
    };
    // The head is as it was, so the texts are still told apart.
    assert!(right(&task) > 0.9, "{}", right(&task));
    let swapped = noted(&continued(&like, &dir, "alpha", "zeta")).unwrap().0;
    assert!(right(&swapped) < 0.1, "{}", right(&swapped));
}

#[test]
fn labels_that_the_head_lacks_are_refused_by_name_unless_a_new_head_is_requested() {
    let scratch = tempfile::tempdir().unwrap();
    let (like, dir) = classifier(scratch.path(), ["bad", "good"]);
    let mut recipe = continued(&like, &dir, "bad", "splendid");
    let error = noted(&recipe).err().unwrap();
    let says = error.to_string();
    assert!(says.contains("the labels \"splendid\", its head knows \"bad\", \"good\""), "{says}");
    assert!(error.hint().unwrap().contains("--new-head"));
    recipe.train.new_head = true;
    recipe.validate().unwrap();
    let (task, notes) = noted(&recipe).unwrap();
    assert!(notes.contains("labels: bad, splendid"), "{notes}");
    assert_eq!(id2label(&task), json!({ "0": "bad", "1": "splendid" }));
    // The backbone is the loaded one, the head is not.
    let stored = io::Checkpoint::open(&dir).unwrap();
    for param in task.objective.model().params().params() {
        let stored = stored.tensor(param.name(), param.shape()).unwrap();
        let is_same = stored.to_vec() == param.tensor().to_vec();
        assert_eq!(is_same, param.name() != "score.weight", "{}", param.name());
    }
    // It can be started twice: the labels of the head are kept when the data has fewer.
    let three = std::fs::read_to_string(&recipe.data.path).unwrap()
        + "{\"text\":\"So so.\",\"label\":\"fair\"}\n";
    std::fs::write(&recipe.data.path, three).unwrap();
    let (task, _) = noted(&recipe).unwrap();
    assert_eq!(id2label(&task), json!({ "0": "bad", "1": "fair", "2": "splendid" }));
}

#[test]
fn a_class_only_in_the_held_out_part_exists_and_missing_ones_are_named() {
    let scratch = tempfile::tempdir().unwrap();
    let mut fresh = recipe(scratch.path(), llama(32), ObjectiveKind::CLASSIFY);
    let held_out = scratch.path().join("held-out.jsonl");
    let one = "{\"text\":\"So so.\",\"label\":\"fair\"}\n{\"text\":\"No.\",\"label\":\"bad\"}\n";
    std::fs::write(&held_out, one).unwrap();
    fresh.data.validation_path = held_out.display().to_string();
    let (task, notes) = noted(&fresh).unwrap();
    assert!(notes.contains("labels: bad, fair, good"), "{notes}");
    assert_eq!(id2label(&task), json!({ "0": "bad", "1": "fair", "2": "good" }));
    fresh.train.steps = 1;
    let (_, _) = run_watched(&fresh, Watch::default());
    // Continued on data without two of the labels, in which the head keeps them.
    let only = scratch.path().join("only.jsonl");
    let lines = (0..20).map(|i| format!("{{\"text\":\"No {i}.\",\"label\":\"bad\"}}\n"));
    std::fs::write(&only, lines.collect::<String>()).unwrap();
    let mut more = continued(&fresh, &fresh.dir(), "bad", "good");
    more.data.path = only.display().to_string();
    more.data.validation_path.clear();
    let (task, notes) = noted(&more).unwrap();
    assert!(notes.contains("no text with these of its labels: fair, good"), "{notes}");
    assert_eq!(id2label(&task), json!({ "0": "bad", "1": "fair", "2": "good" }));
}

#[test]
fn the_pooling_of_a_recipe_is_used_and_kept() {
    let scratch = tempfile::tempdir().unwrap();
    let mut recipe = recipe(scratch.path(), llama(32), ObjectiveKind::CLASSIFY);
    let sets = ["objective.pooling=mean", "train.steps=20", "checkpoint.every_steps=0"];
    recipe = recipe.with_overrides(&sets.map(str::to_owned)).unwrap();
    assert!(recipe.to_toml().contains("pooling = \"mean\""), "{}", recipe.to_toml());
    run_watched(&recipe, Watch::default());
    let dir = recipe.dir().join("checkpoints/step-20");
    let pooling = |task: &Task| task.objective.config_json()["classifier_pooling"].clone();

    let by = |sets: &[&str]| {
        let sets: Vec<_> = sets.iter().map(|set| (*set).to_owned()).collect();
        let same = continued(&recipe, &dir, "bad", "good");
        noted(&Recipe { objective: ObjectiveKind::CLASSIFY, ..same }.with_overrides(&sets).unwrap())
    };
    // Without the key a loaded head classifies as before; another one is refused.
    assert_eq!(pooling(&by(&[]).unwrap().0), "mean");
    let end = "objective.pooling=end_of_document";
    let error = by(&[end]).err().unwrap().to_string();
    let expected = "objective.pooling is end_of_document, expected mean or no such key";
    assert!(error.contains(expected) && error.contains("train.new_head"), "{error}");
    assert_eq!(pooling(&by(&[end, "train.new_head=true"]).unwrap().0), "end_of_document");

    let error = recipe.with_overrides(&["objective.pooling=first".to_owned()]).unwrap_err();
    assert!(error.to_string().contains("unknown variant `first`"), "{error}");
}
