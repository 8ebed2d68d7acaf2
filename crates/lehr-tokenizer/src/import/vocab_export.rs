//! Export of a tokenizer of any kind as the parts of a GGUF vocabulary.

use std::collections::HashMap;

use serde_json::Value;

use super::{TokenType, VocabParts, patterns};
use crate::{Error, Result, Tokenizer};

/// Score of a token that no merge makes: below those of all others.
const NEVER_MERGED: f32 = -1e9;

impl VocabParts {
    /// Returns the parts of `tokenizer`, with one name for each of the first `vocab_size` ids. A
    /// model may have rows that its tokenizer does not use.
    ///
    /// # Errors
    /// GGUF cannot express how this tokenizer cuts text, or does not have its kind.
    pub fn of(tokenizer: &Tokenizer, vocab_size: usize) -> Result<Self> {
        let fail = |reason: String| Error::Export { reason };
        let json: Value =
            serde_json::from_str(&tokenizer.to_json()).map_err(|e| fail(e.to_string()))?;
        let n = vocab_size.max(tokenizer.vocab_size());
        let mut parts = Self { special_ids: tokenizer.special_ids(), ..Self::default() };
        let added = added_tokens(&json);
        for id in 0..n as u32 {
            let named = tokenizer.token(id);
            let kind = match (&named, added.get(&id)) {
                (None, _) => TokenType::Unused,
                (_, Some(true)) => TokenType::Control,
                (_, Some(false)) => TokenType::UserDefined,
                (Some(_), None) => TokenType::Normal,
            };
            parts.tokens.push(named.unwrap_or_else(|| format!("[PAD{id}]")));
            parts.token_types.push(kind);
        }
        parts.add_frame(tokenizer);
        match json["model"]["type"].as_str().unwrap_or("BPE") {
            "BPE" if is_byte_level(&json) => parts.fill_byte_level(&json).map_err(fail)?,
            "BPE" if json["model"]["byte_fallback"] == true => parts.fill_sentencepiece_bpe(&json),
            "Unigram" => parts.fill_unigram(&json).map_err(fail)?,
            "WordPiece" => parts.fill_wordpiece(&json),
            kind => {
                return Err(fail(format!(
                    "the tokenizer is of the kind {kind}, expected byte-level or byte-fallback \
                     BPE, Unigram or WordPiece"
                )));
            }
        }
        Ok(parts)
    }

    /// Lists the parts of `tokenizer` that GGUF cannot say and whose loss changes no usual text: a
    /// normaliser that composes characters. Files of models with one, such as Qwen's, lack it.
    #[must_use]
    pub fn unsaid(tokenizer: &Tokenizer) -> Vec<String> {
        let json: Value = serde_json::from_str(&tokenizer.to_json()).unwrap_or_default();
        let composes = is_byte_level(&json) && is_nfc(&json["normalizer"]);
        let part = "the normaliser NFC: decomposed characters give other ids";
        composes.then(|| part.to_owned()).into_iter().collect()
    }

    fn add_frame(&mut self, tokenizer: &Tokenizer) {
        let is = |ids: &[u32], id: Option<u32>| id.is_some_and(|id| ids == [id]);
        self.add_bos = Some(is(tokenizer.prefix_ids(), self.special_ids.bos));
        self.add_eos = Some(is(tokenizer.suffix_ids(), self.special_ids.eos));
    }

    fn fill_byte_level(&mut self, json: &Value) -> std::result::Result<(), String> {
        "gpt2".clone_into(&mut self.model);
        let normalizer = &json["normalizer"];
        if !normalizer.is_null() && !is_nfc(normalizer) {
            let found = &normalizer["type"];
            return Err(format!(
                "the tokenizer changes text before it reads it (normaliser {found}), which GGUF's \
                 byte-level vocabularies do not"
            ));
        }
        let found = cuts(&json["pre_tokenizer"])?;
        let ignores = json["model"]["ignore_merges"] == true;
        let pre = patterns::name_of(&found, ignores).ok_or_else(|| {
            format!("GGUF has no name for how this tokenizer cuts text, {}", found.join(" then "))
        })?;
        self.pre = Some(pre.to_owned());
        self.merges = merges(json).map(|(left, right)| format!("{left} {right}")).collect();
        Ok(())
    }

    /// SentencePiece merges the pair whose whole has the highest score: the order of the merges.
    fn fill_sentencepiece_bpe(&mut self, json: &Value) {
        "llama".clone_into(&mut self.model);
        self.pre = Some("default".to_owned());
        let mut rank: HashMap<String, usize> = HashMap::new();
        for (at, (left, right)) in merges(json).enumerate() {
            rank.entry(format!("{left}{right}")).or_insert(at);
        }
        let score = |token: &String| match rank.get(token) {
            Some(rank) => -(*rank as f32),
            None if token.chars().nth(1).is_none() => 0.0,
            None => NEVER_MERGED,
        };
        self.scores = self.tokens.iter().map(score).collect();
        self.mark_bytes_and_unknown(json["model"]["unk_token"].as_str());
        self.add_space_prefix = Some(has_space_prefix(json));
    }

    fn fill_unigram(&mut self, json: &Value) -> std::result::Result<(), String> {
        "t5".clone_into(&mut self.model);
        self.pre = Some("default".to_owned());
        let listed = json["model"]["vocab"].as_array().map(Vec::as_slice).unwrap_or_default();
        let score = |id: usize| listed.get(id).and_then(|entry| entry[1].as_f64());
        self.scores = (0..self.tokens.len()).map(|id| score(id).unwrap_or(0.0) as f32).collect();
        let unk = json["model"]["unk_id"].as_u64().map(|id| id as usize);
        let unk = unk.and_then(|id| self.tokens.get(id)).cloned();
        self.mark_bytes_and_unknown(unk.as_deref());
        self.add_space_prefix = Some(has_space_prefix(json));
        self.remove_extra_whitespaces = Some(json["normalizer"].to_string().contains("{2,}"));
        if let Some(map) = find(&json["normalizer"], "precompiled_charsmap").and_then(Value::as_str)
        {
            use base64::Engine;
            let bytes = base64::engine::general_purpose::STANDARD.decode(map);
            self.precompiled_charsmap = bytes.map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    fn fill_wordpiece(&mut self, json: &Value) {
        "bert".clone_into(&mut self.model);
        self.pre = Some("default".to_owned());
        for (token, kind) in self.tokens.iter_mut().zip(&self.token_types) {
            if matches!(kind, TokenType::Control | TokenType::Unused) {
                continue;
            }
            // GGUF marks the beginnings of words where BERT marks their continuations.
            *token = match token.strip_prefix("##") {
                Some(rest) if !rest.is_empty() => rest.to_owned(),
                _ => format!("▁{token}"),
            };
        }
        self.lowercase = json["normalizer"]["lowercase"].as_bool();
        self.strip_accents = json["normalizer"]["strip_accents"].as_bool();
    }

    fn mark_bytes_and_unknown(&mut self, unk: Option<&str>) {
        for (token, kind) in self.tokens.iter().zip(&mut self.token_types) {
            if Some(token.as_str()) == unk {
                *kind = TokenType::Unknown;
            } else if *kind == TokenType::Normal && is_byte_name(token) {
                *kind = TokenType::Byte;
            }
        }
    }
}

/// `<0xAB>`
fn is_byte_name(token: &str) -> bool {
    let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    hex.is_some_and(|hex| hex.len() == 2 && u8::from_str_radix(hex, 16).is_ok())
}

/// Ids of added tokens, and whether each is special.
fn added_tokens(json: &Value) -> HashMap<u32, bool> {
    let tokens = json["added_tokens"].as_array().into_iter().flatten();
    let one = |t: &Value| {
        let id = u32::try_from(t["id"].as_u64()?).ok()?;
        Some((id, t["special"] == true))
    };
    tokens.filter_map(one).collect()
}

fn merges(json: &Value) -> impl Iterator<Item = (&str, &str)> {
    json["model"]["merges"].as_array().into_iter().flatten().filter_map(pair)
}

fn pair(merge: &Value) -> Option<(&str, &str)> {
    // Older files have both tokens in one string.
    match merge {
        Value::String(text) => text.split_once(' '),
        _ => Some((merge[0].as_str()?, merge[1].as_str()?)),
    }
}

/// Whether a normaliser only composes characters.
fn is_nfc(normalizer: &Value) -> bool {
    let members = members(normalizer, "normalizers");
    !members.is_empty() && members.iter().all(|member| member["type"] == "NFC")
}

fn is_byte_level(json: &Value) -> bool {
    members(&json["pre_tokenizer"], "pretokenizers").iter().any(|m| m["type"] == "ByteLevel")
}

/// A sequence's members, or the one itself.
fn members<'a>(value: &'a Value, key: &str) -> Vec<&'a Value> {
    match value[key].as_array() {
        Some(members) => members.iter().collect(),
        None if value.is_null() => Vec::new(),
        None => vec![value],
    }
}

/// The patterns that cut a text one after another.
fn cuts(pre_tokenizer: &Value) -> std::result::Result<Vec<String>, String> {
    let mut found = Vec::new();
    for member in members(pre_tokenizer, "pretokenizers") {
        let kind = member["type"].as_str().unwrap_or_default();
        match kind {
            "ByteLevel" if member["add_prefix_space"] == true => {
                return Err(
                    "the tokenizer puts a space before each text, which GGUF's byte-level \
                            vocabularies do not"
                        .to_owned(),
                );
            }
            "ByteLevel" if member["use_regex"] == false => {}
            "ByteLevel" => found.push(patterns::GPT2.to_owned()),
            "Digits" if member["individual_digits"] == true => found.push(r"\p{N}".to_owned()),
            "Digits" => found.push(r"\p{N}+".to_owned()),
            "Split" => {
                let pattern = member["pattern"]["Regex"].as_str();
                found.push(pattern.ok_or("the tokenizer cuts at a fixed text")?.to_owned());
            }
            other => return Err(format!("the tokenizer cuts text by {other}")),
        }
    }
    Ok(found)
}

/// Whether a space is put before a text.
fn has_space_prefix(json: &Value) -> bool {
    let prepends =
        members(&json["normalizer"], "normalizers").iter().any(|n| n["type"] == "Prepend");
    let metaspace = members(&json["pre_tokenizer"], "pretokenizers").into_iter();
    let scheme = |m: &Value| m["prepend_scheme"].as_str().unwrap_or("always") != "never";
    prepends || metaspace.filter(|m| m["type"] == "Metaspace").any(scheme)
}

/// The value of `key` in a member of a sequence.
fn find<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    members(value, "normalizers").into_iter().find_map(|member| member.get(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Pattern, Trainer};

    #[test]
    fn a_trained_tokenizer_comes_back_with_the_same_ids() {
        let text = "the quick brown fox; 12345 jumps!\n 敏捷的棕色狐狸 the fox's dog's  spaces";
        for pattern in [Pattern::Gpt2, Pattern::Gpt4] {
            let mut trainer = Trainer::new(320);
            trainer.pattern = pattern;
            let tokenizer = trainer.train([text; 4]).unwrap();
            // Two rows more than ids.
            let parts = VocabParts::of(&tokenizer, tokenizer.vocab_size() + 2).unwrap();
            assert_eq!(parts.tokens.len(), tokenizer.vocab_size() + 2);
            assert_eq!(*parts.token_types.last().unwrap(), TokenType::Unused);
            let again = parts.build().unwrap();
            for sample in [text, "unseen words, 987 6\t\n\n  déjà vu 🦊<|endoftext|>"] {
                assert_eq!(again.encode(sample).unwrap(), tokenizer.encode(sample).unwrap());
            }
            assert_eq!(again.end_of_document().ok(), tokenizer.end_of_document().ok());
        }
    }

    #[test]
    fn a_cut_without_a_name_is_an_error() {
        let tokenizer = Trainer::new(300).train(["a b c"; 3]).unwrap();
        let mut json: Value = serde_json::from_str(&tokenizer.to_json()).unwrap();
        json["pre_tokenizer"] = serde_json::json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
             "use_regex": false}]});
        let tokenizer = Tokenizer::from_json(&json.to_string()).unwrap();
        let error = VocabParts::of(&tokenizer, 0).unwrap_err().to_string();
        assert!(error.contains("no name for how") && error.contains("x+"), "{error}");
    }
}
