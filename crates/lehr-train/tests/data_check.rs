//! What is shown of the data is what is trained.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;

use common::{gpt2, llama, recipe};
use lehr_train::recipe::{ModelConfig, ObjectiveKind};
use lehr_train::{DataCheck, Preview, Recipe, prepare};

/// The check of a recipe's data, and the notes of its preparation.
fn check(recipe: &Recipe) -> (DataCheck, Vec<String>) {
    let mut notes = Vec::new();
    let cache = recipe.dir().join("cache");
    let task = prepare(recipe, &cache, &mut |note| notes.push(note.to_owned())).unwrap();
    (DataCheck::new(&task, recipe, 4).unwrap(), notes)
}

fn checked(dir: &Path, model: ModelConfig, objective: ObjectiveKind) -> DataCheck {
    check(&recipe(dir, model, objective)).0
}

fn joined(preview: &Preview, learnt: bool) -> String {
    preview.parts.iter().filter(|part| part.learnt == learnt).map(|part| &*part.text).collect()
}

#[test]
fn answers_with_their_ends_are_learnt_of_conversations() {
    let scratch = tempfile::tempdir().unwrap();
    let check = checked(scratch.path(), gpt2(32), ObjectiveKind::Chat);
    assert_eq!(check.previews.len(), 4);
    for preview in &check.previews {
        let (learnt, other) = (joined(preview, true), joined(preview, false));
        let answers = ["Good.", "It has to be melted and cooled again, slowly."];
        assert!(answers.iter().any(|answer| learnt.contains(answer)), "{learnt}");
        assert!(other.contains("days in the lehr") && !learnt.contains("lehr"), "{preview:?}");
        assert!(learnt.ends_with('>'), "the end of the turn is learnt, by its name: {learnt}");
    }
    assert_eq!((check.ended, check.without_target), (check.examples, 0));
    assert!(check.warnings().is_empty(), "{:?}", check.warnings());
}

#[test]
fn cut_answers_are_counted() {
    let scratch = tempfile::tempdir().unwrap();
    let mut recipe = recipe(scratch.path(), gpt2(32), ObjectiveKind::Chat);
    let whole = check(&recipe).0;
    recipe.train.seq_len /= 2;
    let (cut, notes) = check(&recipe);
    assert!(cut.ended < cut.examples && whole.ended == whole.examples);
    assert!(cut.warnings()[0].contains("without the token that ends a turn"));
    assert!(notes.iter().any(|note| note.contains("lose their end")), "{notes:?}");
}

#[test]
fn documents_are_learnt_from_their_second_token_on() {
    let scratch = tempfile::tempdir().unwrap();
    let check = checked(scratch.path(), llama(32), ObjectiveKind::NextToken);
    for preview in &check.previews {
        assert!(preview.parts.iter().skip(1).all(|part| part.learnt), "{preview:?}");
    }
    // Nothing follows the end of a document.
    let n_last = check.tokens - check.targets;
    assert!(n_last > 0 && n_last <= check.examples, "{check:?}");
    assert!(check.warnings().is_empty());
}

#[test]
fn texts_have_their_labels_and_words_their_tags() {
    let scratch = tempfile::tempdir().unwrap();
    let check = checked(scratch.path(), llama(32), ObjectiveKind::CLASSIFY);
    for preview in &check.previews {
        let glad = preview.label.as_deref() == Some("good");
        let text = joined(preview, false);
        let praise = ["clear", "bright", "out even", "strong", "smooth", "lovely"];
        assert_eq!(praise.iter().any(|word| text.contains(word)), glad, "{preview:?}");
        assert_eq!(joined(preview, true), "");
    }
    assert_eq!(check.targets, check.examples);

    let scratch = tempfile::tempdir().unwrap();
    let check = checked(scratch.path(), llama(32), ObjectiveKind::Tag);
    for preview in &check.previews {
        let tags: Vec<_> = preview.parts.iter().filter_map(|part| part.tag.as_deref()).collect();
        assert_eq!(tags, ["B-TIME", "I-TIME", "B-THING", "B-QUALITY"], "{preview:?}");
    }
    assert_eq!(check.targets, 11 * check.examples);
}

#[test]
fn copies_leaks_and_contradictions_are_named() {
    let scratch = tempfile::tempdir().unwrap();
    let mut recipe = recipe(scratch.path(), llama(32), ObjectiveKind::CLASSIFY);
    let line = |text: &str, label: &str| {
        format!("{}\n", serde_json::json!({ "text": text, "label": label }))
    };
    let data = scratch.path().join("twice.jsonl");
    let text: String = (0..30).map(|i| line(&format!("lens {i}"), "good")).collect();
    std::fs::write(&data, text + &line("lens 3", "bad") + &line("lens 4 ", "good")).unwrap();
    let held_out = scratch.path().join("held_out.jsonl");
    std::fs::write(&held_out, line("lens 5", "good") + &line("bowl", "bad")).unwrap();
    recipe.data.path = data.display().to_string();
    recipe.data.validation_path = held_out.display().to_string();
    let (_, notes) = check(&recipe);
    let notes = notes.join("\n");
    for part in [
        "2 labelled texts to learn from, 6.2 % are copies of others",
        "1 held-out labelled texts, 50.0 % are also in the training data",
        "by label: bad 1, good 31",
        "96.9 % of the texts have the label good",
        "1 texts occur with different labels",
    ] {
        assert!(notes.contains(part), "{part}: {notes}");
    }
}

#[test]
fn a_report_shows_what_is_learnt() {
    let scratch = tempfile::tempdir().unwrap();
    let html = checked(scratch.path(), gpt2(32), ObjectiveKind::Chat).html("Data");
    assert!(html.contains("<mark>") && html.contains("are learnt"), "{html}");
}
