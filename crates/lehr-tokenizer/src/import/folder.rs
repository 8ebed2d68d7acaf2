//! Opening of tokenizers in folders.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::assemble::{Added, Template};
use super::sentencepiece::{Around, KIND as SENTENCEPIECE, Model};
use super::{ChatGlm, TiktokenKind, bpe, chatglm, tekken, wordpiece};
use crate::tokenizer::read;
use crate::{Error, Result, SpecialIds, Tokenizer};

/// Names of tokenizer files in a model's folder, best first.
const FILES: [&str; 10] = [
    "tokenizer.json",
    "tekken.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "ice_text.model",
    "qwen.tiktoken",
    "vocab.json",
    "encoder.json",
    "vocab.txt",
];

impl Tokenizer {
    /// Opens a tokenizer of any kind from a model's folder or one file. The content decides the
    /// kind of a file, and a `tokenizer_config.json` beside it adds what the file leaves open.
    ///
    /// Kinds: `tokenizer.json`, SentencePiece's `.model`, tiktoken's rank files, Mistral's
    /// `tekken.json`, `vocab.json` with `merges.txt` (or `encoder.json` with `vocab.bpe`) and
    /// BERT's `vocab.txt`. A vocabulary inside a GGUF file is a [`VocabParts`](crate::VocabParts).
    ///
    /// # Errors
    /// There is no such file, or it is none of these kinds, or it is damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = if path.is_dir() { find(path)? } else { path.to_owned() };
        open_file(&file).map_err(|error| error.in_file(&file))
    }
}

fn find(folder: &Path) -> Result<PathBuf> {
    let there = FILES.iter().map(|name| folder.join(name)).find(|path| path.is_file());
    there.ok_or_else(|| Error::NoTokenizer {
        folder: folder.into(),
        wanted: FILES.map(str::to_owned).to_vec(),
    })
}

fn open_file(path: &Path) -> Result<Tokenizer> {
    let bytes = read(path)?;
    let config = config_beside(path)?;
    let class = config["tokenizer_class"].as_str().unwrap_or_default();
    let unknown = |reason: &str| Error::Import {
        kind: "tokenizer",
        path: Some(path.into()),
        reason: reason.to_owned(),
    };
    if bytes.starts_with(b"GGUF") {
        return Err(unknown("a GGUF file, whose vocabulary is read with the model"));
    }
    let start = bytes.trim_ascii_start();
    if start.starts_with(b"{") {
        return open_json(path, bytes, &config);
    }
    let text = std::str::from_utf8(&bytes).ok();
    if let Some(text) = text {
        let line = text.lines().next().unwrap_or_default();
        if is_rank(line) {
            let glm = class.starts_with("ChatGLM").then_some(TiktokenKind::Glm4);
            let known = TiktokenKind::by_ranks(text.lines().filter(|l| !l.is_empty()).count());
            return Tokenizer::from_tiktoken(text, known.or(glm));
        }
        if line.starts_with("#version") {
            return merges(path, &config);
        }
        if text.lines().any(|line| line == "[UNK]") {
            return wordpiece::from_text(text, &config);
        }
    }
    // Every field of a SentencePiece model is a message, and the first are its pieces.
    if bytes.first() == Some(&0x0A) {
        return sentencepiece(path, &bytes, &config, class);
    }
    Err(unknown(
        "found neither JSON, nor tiktoken's ranks, nor a SentencePiece model, nor BERT's words",
    ))
}

fn is_rank(line: &str) -> bool {
    let base64 = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
    line.trim_end().split_once(' ').is_some_and(|(token, rank)| {
        token.len() >= 4
            && token.len() % 4 == 0
            && token.chars().all(base64)
            && rank.parse::<u32>().is_ok()
    })
}

fn open_json(path: &Path, bytes: Vec<u8>, config: &Value) -> Result<Tokenizer> {
    let keys =
        top_level_keys(&bytes).map_err(|reason| Error::Json { path: Some(path.into()), reason })?;
    let has = |key: &str| keys.iter().any(|other| other == key);
    if has("config") && has("vocab") {
        return tekken::from_json(&bytes);
    }
    // A byte-level vocabulary has far more keys, and "model" may be one of its tokens.
    if !has("model") || keys.len() > 32 {
        return vocab_and_merges(path, config);
    }
    let json = String::from_utf8(bytes)
        .map_err(|error| Error::Json { path: Some(path.into()), reason: error.to_string() })?;
    Tokenizer::from_json_with(&json, |tokenizer| {
        let ids = SpecialIds::from_config(config, |name| tokenizer.token_to_id(name));
        add_missing_frame(tokenizer, config, ids);
        Ok(ids)
    })
}

/// For Hugging Face's Llama tokenizers the configuration, not tokenizer.json, says that a text
/// begins with the begin token.
fn add_missing_frame(tokenizer: &mut tokenizers::Tokenizer, config: &Value, ids: SpecialIds) {
    let llama = config["tokenizer_class"].as_str().is_some_and(|class| class.starts_with("Llama"));
    if !llama || crate::encode::Frame::of(tokenizer) != crate::encode::Frame::default() {
        return;
    }
    let one = |key: &str, id: Option<u32>| -> Vec<(String, u32)> {
        let wanted = config[key] == true;
        let named = id.and_then(|id| Some((tokenizer.id_to_token(id)?, id)));
        named.filter(|_| wanted).into_iter().collect()
    };
    let before = one("add_bos_token", ids.bos);
    let after = one("add_eos_token", ids.eos);
    let frame = Template { before, after, repeat_before: true };
    let processor =
        frame.processor().map(serde_json::from_value::<tokenizers::PostProcessorWrapper>);
    if let Some(Ok(processor)) = processor {
        tokenizer.with_post_processor(Some(processor));
    }
}

/// The keys of a JSON object.
fn top_level_keys(json: &[u8]) -> std::result::Result<Vec<String>, String> {
    use serde::de::IgnoredAny;
    let object: std::collections::HashMap<String, IgnoredAny> =
        serde_json::from_slice(json).map_err(|error| error.to_string())?;
    Ok(object.into_keys().collect())
}

/// The merges beside a `vocab.json` or `encoder.json`.
fn vocab_and_merges(vocab: &Path, config: &Value) -> Result<Tokenizer> {
    let beside = ["merges.txt", "vocab.bpe"].map(|name| vocab.with_file_name(name));
    let merges = beside.iter().find(|path| path.is_file());
    match merges {
        Some(merges) => bpe::from_files(vocab, merges, config),
        None => Err(Error::NoTokenizer {
            folder: vocab.parent().unwrap_or(Path::new("")).into(),
            wanted: vec!["merges.txt".to_owned(), "vocab.bpe".to_owned()],
        }),
    }
}

/// The vocabulary beside a `merges.txt` or `vocab.bpe`.
fn merges(merges: &Path, config: &Value) -> Result<Tokenizer> {
    let beside = ["vocab.json", "encoder.json"].map(|name| merges.with_file_name(name));
    match beside.iter().find(|path| path.is_file()) {
        Some(vocab) => bpe::from_files(vocab, merges, config),
        None => Err(Error::NoTokenizer {
            folder: merges.parent().unwrap_or(Path::new("")).into(),
            wanted: vec!["vocab.json".to_owned(), "encoder.json".to_owned()],
        }),
    }
}

fn sentencepiece(path: &Path, bytes: &[u8], config: &Value, class: &str) -> Result<Tokenizer> {
    let mut model = Model::parse(bytes).map_err(|reason| Error::Import {
        kind: SENTENCEPIECE,
        path: None,
        reason,
    })?;
    if chatglm::is_first(&model) {
        return Tokenizer::from_chatglm(bytes, ChatGlm::V1);
    }
    if class.starts_with("ChatGLM") {
        let third = mentions(path, "<|observation|>");
        return Tokenizer::from_chatglm(bytes, if third { ChatGlm::V3 } else { ChatGlm::V2 });
    }
    let added = added_tokens(config, &model);
    let find = |name: &str| {
        let id = added.iter().find(|token| token.name == name).map(|token| token.id);
        id.or_else(|| model.find(name))
    };
    let mut frame = model.usual_frame();
    model.ids = SpecialIds::from_config(config, find).or(model.ids);
    for (key, tokens, id) in [
        ("add_bos_token", &mut frame.before, model.ids.bos),
        ("add_eos_token", &mut frame.after, model.ids.eos),
    ] {
        match config[key].as_bool() {
            Some(true) => *tokens = model.named(id).into_iter().collect(),
            Some(false) => tokens.clear(),
            None => {}
        }
    }
    model.build(SENTENCEPIECE, Around { added, frame, ..Around::default() })
}

/// Tokens that a `tokenizer_config.json` adds to a SentencePiece model, by rising id.
fn added_tokens(config: &Value, model: &Model) -> Vec<Added> {
    let listed = config["added_tokens_decoder"].as_object();
    let mut added: Vec<Added> = listed
        .into_iter()
        .flatten()
        .filter_map(|(id, token)| {
            let id: u32 = id.parse().ok()?;
            let name = token["content"].as_str()?.to_owned();
            // Names of pieces stay with their pieces.
            let known = model.pieces.get(id as usize).map(|piece| &piece.text);
            let special = token["special"] == true;
            known.is_none_or(|text| *text == name).then_some(Added {
                id,
                name,
                special,
                normalized: false,
            })
        })
        .collect();
    added.sort_by_key(|token| token.id);
    // A name that is already a user-defined symbol needs no second entry.
    added.retain(|token| token.special || token.id as usize >= model.pieces.len());
    added
}

/// Whether a file that comes with a ChatGLM speaks of `name`.
fn mentions(path: &Path, name: &str) -> bool {
    ["tokenizer_config.json", "tokenization_chatglm.py"].iter().any(|file| {
        std::fs::read_to_string(path.with_file_name(file)).is_ok_and(|text| text.contains(name))
    })
}

/// `tokenizer_config.json` beside a file, with missing names from `special_tokens_map.json`; null
/// if there is neither.
fn config_beside(path: &Path) -> Result<Value> {
    let mut config = Value::Null;
    for name in ["special_tokens_map.json", "tokenizer_config.json"] {
        let file = path.with_file_name(name);
        if !file.is_file() {
            continue;
        }
        let read: Value = serde_json::from_slice(&read(&file)?)
            .map_err(|error| Error::Json { path: Some(file.clone()), reason: error.to_string() })?;
        match (&mut config, read) {
            (Value::Object(all), Value::Object(more)) => all.extend(more),
            (config, read) => *config = read,
        }
    }
    Ok(config)
}
