//! Opening of tokenizers in folders.

use std::path::{Path, PathBuf};

use super::assemble::{Added, Template};
use super::config::Config;
use super::sentencepiece::{Around, KIND as SENTENCEPIECE, Model};
use super::{ChatGlm, TiktokenKind, bpe, chatglm, declared, normalize, tekken, wordpiece};
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
    let config = Config::beside(path)?;
    declared::check(&config);
    let tokenizer = of_kind(path, &bytes, &config)?;
    Ok(tokenizer.with_warnings(config.warnings()))
}

fn of_kind(path: &Path, bytes: &[u8], config: &Config) -> Result<Tokenizer> {
    let unknown = |reason: &str| Error::Import {
        kind: "tokenizer",
        path: Some(path.into()),
        reason: reason.to_owned(),
    };
    if bytes.starts_with(b"GGUF") {
        return Err(unknown("a GGUF file, whose vocabulary is read with the model"));
    }
    let start = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes).trim_ascii_start();
    if start.starts_with(b"{") {
        return open_json(path, start, config);
    }
    let text = std::str::from_utf8(bytes).ok();
    if let Some(text) = text {
        let line = text.lines().next().unwrap_or_default();
        if is_rank(line) {
            let glm = config.class().starts_with("ChatGLM").then_some(TiktokenKind::Glm4);
            let known = TiktokenKind::by_ranks(text.lines().filter(|l| !l.is_empty()).count());
            return with_declared(Tokenizer::from_tiktoken(text, known.or(glm))?, config);
        }
        if line.starts_with("#version") {
            return merges(path, config);
        }
        if text.lines().any(|line| line == "[UNK]") {
            return with_declared(wordpiece::from_text(text, config)?, config);
        }
    }
    // Every field of a SentencePiece model is a message, and the first are its pieces.
    if bytes.first() == Some(&0x0A) {
        return with_declared(sentencepiece(path, bytes, config)?, config);
    }
    Err(unknown(
        "found neither JSON, nor tiktoken's ranks, nor a SentencePiece model, nor BERT's words",
    ))
}

/// Adds the tokens and purposes that `config` declares.
fn with_declared(tokenizer: Tokenizer, config: &Config) -> Result<Tokenizer> {
    let fail = |reason: String| Error::Json { path: None, reason };
    let mut hf = tokenizer.hf().clone();
    let changed = declared::add(&mut hf, config).map_err(|error| fail(error.to_string()))?;
    normalize::decoding(&hf, config);
    let ids = SpecialIds::from_config(|key| &config[key], |name| hf.token_to_id(name));
    let ids = ids.or(tokenizer.special_ids());
    if !changed && ids == tokenizer.special_ids() {
        return Ok(tokenizer);
    }
    Ok(Tokenizer::from_hf(hf, ids)?.with_warnings(tokenizer.warnings().to_vec()))
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

fn open_json(path: &Path, bytes: &[u8], config: &Config) -> Result<Tokenizer> {
    let keys =
        top_level_keys(bytes).map_err(|reason| Error::Json { path: Some(path.into()), reason })?;
    let has = |key: &str| keys.iter().any(|other| other == key);
    if has("config") && has("vocab") {
        return with_declared(tekken::from_json(bytes)?, config);
    }
    // A byte-level vocabulary has far more keys, and "model" may be one of its tokens.
    if !has("model") || keys.len() > 32 {
        return vocab_and_merges(path, config);
    }
    let json = std::str::from_utf8(bytes)
        .map_err(|error| Error::Json { path: Some(path.into()), reason: error.to_string() })?;
    Tokenizer::from_json_with(json, |tokenizer| {
        let fail = |reason: String| Error::Json { path: Some(path.into()), reason };
        declared::add(tokenizer, config).map_err(|error| fail(error.to_string()))?;
        let ids = SpecialIds::from_config(|key| &config[key], |name| tokenizer.token_to_id(name));
        add_missing_frame(tokenizer, config, ids);
        normalize::apply(tokenizer, config).map_err(fail)?;
        Ok(ids)
    })
}

/// For Hugging Face's Llama tokenizers the configuration, not tokenizer.json, says that a text
/// begins with the begin token. For others tokenizer.json decides, as in transformers.
fn add_missing_frame(tokenizer: &mut tokenizers::Tokenizer, config: &Config, ids: SpecialIds) {
    let frame = crate::encode::Frame::of(tokenizer);
    if config.class().starts_with("Llama") && frame == crate::encode::Frame::default() {
        let named = |id: Option<u32>| id.and_then(|id| Some((tokenizer.id_to_token(id)?, id)));
        let mut frame = Template { repeat_before: true, ..Template::default() };
        config.frame(&mut frame, named(ids.bos), named(ids.eos));
        let processor =
            frame.processor().map(serde_json::from_value::<tokenizers::PostProcessorWrapper>);
        if let Some(Ok(processor)) = processor {
            tokenizer.with_post_processor(Some(processor));
        }
        return;
    }
    for (key, id, is_added) in [
        ("add_bos_token", ids.bos, ids.bos.is_some_and(|id| frame.before.contains(&id))),
        ("add_eos_token", ids.eos, ids.eos.is_some_and(|id| frame.after.contains(&id))),
    ] {
        if let Some(wanted) = config[key].as_bool()
            && wanted != is_added
            && id.is_some()
        {
            config
                .warn(format!("{key} is {wanted}, but tokenizer.json says otherwise and decides"));
        }
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
fn vocab_and_merges(vocab: &Path, config: &Config) -> Result<Tokenizer> {
    let beside = ["merges.txt", "vocab.bpe"].map(|name| vocab.with_file_name(name));
    let merges = beside.iter().find(|path| path.is_file());
    match merges {
        Some(merges) => with_declared(bpe::from_files(vocab, merges, config)?, config),
        None => Err(Error::NoTokenizer {
            folder: vocab.parent().unwrap_or(Path::new("")).into(),
            wanted: vec!["merges.txt".to_owned(), "vocab.bpe".to_owned()],
        }),
    }
}

/// The vocabulary beside a `merges.txt` or `vocab.bpe`.
fn merges(merges: &Path, config: &Config) -> Result<Tokenizer> {
    let beside = ["vocab.json", "encoder.json"].map(|name| merges.with_file_name(name));
    match beside.iter().find(|path| path.is_file()) {
        Some(vocab) => with_declared(bpe::from_files(vocab, merges, config)?, config),
        None => Err(Error::NoTokenizer {
            folder: merges.parent().unwrap_or(Path::new("")).into(),
            wanted: vec!["vocab.json".to_owned(), "encoder.json".to_owned()],
        }),
    }
}

fn sentencepiece(path: &Path, bytes: &[u8], config: &Config) -> Result<Tokenizer> {
    let mut model = Model::parse(bytes).map_err(|reason| Error::Import {
        kind: SENTENCEPIECE,
        path: None,
        reason,
    })?;
    if chatglm::is_first(&model) {
        return Tokenizer::from_chatglm(bytes, ChatGlm::V1);
    }
    if config.class().starts_with("ChatGLM") {
        let third = mentions(path, "<|observation|>");
        return Tokenizer::from_chatglm(bytes, if third { ChatGlm::V3 } else { ChatGlm::V2 });
    }
    let added = added_tokens(config, &model);
    let find = |name: &str| {
        let id = added.iter().find(|token| token.name == name).map(|token| token.id);
        id.or_else(|| model.find(name))
    };
    let mut frame = model.usual_frame();
    model.ids = SpecialIds::from_config(|key| &config[key], find).or(model.ids);
    config.frame(&mut frame, model.named(model.ids.bos), model.named(model.ids.eos));
    if let Some(prefix) = config["add_prefix_space"].as_bool() {
        model.add_dummy_prefix = prefix;
    }
    if config["legacy"] == false && model.add_dummy_prefix {
        config.warn(
            "legacy is false, which is not used: text after a special token begins with a space \
             here"
                .to_owned(),
        );
    }
    let warnings = std::mem::take(&mut model.warnings);
    let tokenizer = model.build(SENTENCEPIECE, Around { added, frame, ..Around::default() })?;
    Ok(tokenizer.with_warnings(warnings))
}

/// Tokens with ids that the configuration adds to a SentencePiece model, by rising id.
fn added_tokens(config: &Config, model: &Model) -> Vec<Added> {
    let mut added: Vec<Added> = declared::listed(config)
        .into_iter()
        .filter(|(token, id)| {
            // Names of pieces stay with their pieces.
            let known = model.pieces.get(*id as usize).map(|piece| &piece.text);
            known.is_none_or(|text| *text == token.content)
        })
        .map(|(token, id)| Added::of(token, id))
        .collect();
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
