//! What a run holds out of texts: said in the log, written into the run directory, and kept by runs
//! of earlier versions.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;

use common::{Watch, llama, recipe, run_watched};
use lehr_data::SplitBy;
use lehr_train::recipe::{ObjectiveKind, Shuffle};
use lehr_train::{Recipe, RunDir, prepare};

fn by_source(dir: &Path) -> Recipe {
    let mut recipe = recipe(dir, llama(32), ObjectiveKind::NextToken);
    (recipe.data.split, recipe.data.shuffle) = (SplitBy::Source, Shuffle::Documents);
    recipe
}

fn notes(recipe: &Recipe, cache: &Path) -> Vec<String> {
    let mut notes = Vec::new();
    prepare(recipe, cache, &mut |note| notes.push(note.to_owned())).unwrap();
    notes
}

#[test]
fn the_held_out_documents_are_named_and_written_down() {
    let scratch = tempfile::tempdir().unwrap();
    let recipe = by_source(scratch.path());
    let cache = scratch.path().join("cache");
    let said = notes(&recipe, &cache);
    let held = said.iter().find(|note| note.starts_with("held out: ")).unwrap();
    assert!(
        held.contains("% of the text: ") && held.contains("documents of text.txt in"),
        "{held}"
    );
    assert!(
        said.iter().any(|note| note.contains("no neighbour of those is trained on")),
        "{said:?}"
    );
    let text = std::fs::read_to_string(cache.join("held_out.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    let share = report["share"].as_f64().unwrap();
    assert!((0.05..0.15).contains(&share), "{report}");
    let count = |name: &str| report[name]["documents"].as_u64().unwrap();
    assert!(count("training") > count("held_out") && count("margin") > 0, "{report}");
    assert_eq!(report["sources"][0]["file"], "text.txt");

    // As before, with a line that says so.
    let mut old = recipe;
    old.data.split = SplitBy::Document;
    let said = notes(&old, &scratch.path().join("cache-2"));
    assert!(said.iter().any(|note| note.contains("have neighbours in training")), "{said:?}");
}

#[test]
fn a_run_of_an_earlier_version_keeps_its_split_and_its_order() {
    let scratch = tempfile::tempdir().unwrap();
    let begun = recipe(scratch.path(), llama(32), ObjectiveKind::NextToken);
    assert_eq!((begun.data.split, begun.data.shuffle), (SplitBy::Document, Shuffle::Rows));
    run_watched(&begun, Watch { stop_after: Some(2), ..Watch::default() });
    // The recipe of such a run does not have the keys.
    let file = begun.dir().join("recipe.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let keys = ["split = ", "shuffle = ", "batch_lr = ", "batch_stages = ", "seq_stages = "];
    let lines: Vec<_> =
        text.lines().filter(|line| !keys.iter().any(|key| line.starts_with(key))).collect();
    assert_eq!(lines.len() + keys.len(), text.lines().count());
    let text = lines.join("\n").replace("[average]\nkind = \"none\"\n", "");
    std::fs::write(&file, &text).unwrap();
    // A new run of the same file has the new split.
    let new = Recipe::parse(&text, "recipe.toml", &[]).unwrap();
    assert_eq!((new.data.split, new.data.shuffle), (SplitBy::Source, Shuffle::Documents));
    let error = RunDir::open(&new).unwrap_err().to_string();
    assert!(error.contains("data.split is \"document\" instead of \"source\""), "{error}");
    assert!(error.contains("data.shuffle is \"rows\" instead of \"documents\""), "{error}");
    let continued = RunDir::load_recipe(&begun.dir()).unwrap();
    assert_eq!(continued, begun);
    let (_, watch) = run_watched(&continued, Watch::default());
    assert_eq!((watch.started, watch.steps.len()), (Some(2), 4));
}

#[test]
fn a_run_by_source_resumes_exactly() {
    let scratch = tempfile::tempdir().unwrap();
    let mut recipe = by_source(scratch.path());
    (recipe.train.steps, recipe.train.batch_size) = (60, 8);
    let dir = |name: &str| {
        let mut recipe = recipe.clone();
        recipe.run.dir = scratch.path().join(name).display().to_string();
        recipe
    };
    let (whole, parts) = (dir("whole"), dir("parts"));
    let (task, undisturbed) = run_watched(&whole, Watch::default());
    assert!(task.train.batches_per_epoch() * 2 < 60, "less than two passes");
    run_watched(&parts, Watch { stop_after: Some(37), ..Watch::default() });
    let (_, rest) = run_watched(&parts, Watch::default());
    assert_eq!(rest.losses(), undisturbed.losses()[37..]);
}
