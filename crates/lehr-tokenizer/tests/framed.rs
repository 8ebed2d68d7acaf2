//! Whole texts with the tokens that a tokenizer puts around them.

#![expect(clippy::unwrap_used, reason = "a failed helper fails its test")]

mod common;

use common::train;
use lehr_tokenizer::{Framed, Pattern, Tokenizer};
use serde_json::json;

const CLS: u32 = 1;
const SEP: u32 = 2;

/// A tokenizer as BERT's, with the truncation and padding that published files have.
fn word_piece() -> Tokenizer {
    let special = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "special": true, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false })
    };
    let names = ["[UNK]", "[CLS]", "[SEP]"];
    let added: Vec<_> = names.iter().zip(0..).map(|(name, id)| special(id, name)).collect();
    let token = |name: &str, id: u32| json!({ "id": name, "ids": [id], "tokens": [name] });
    let json = json!({
        "version": "1.0",
        "truncation": { "max_length": 4, "strategy": "LongestFirst", "stride": 0,
                        "direction": "Right" },
        "padding": { "strategy": { "Fixed": 4 }, "direction": "Right", "pad_to_multiple_of": null,
                     "pad_id": 0, "pad_type_id": 0, "pad_token": "[UNK]" },
        "added_tokens": added,
        "normalizer": { "type": "BertNormalizer", "clean_text": true,
                        "handle_chinese_chars": true, "strip_accents": null, "lowercase": true },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "[CLS]", "type_id": 0 } },
                       { "Sequence": { "id": "A", "type_id": 0 } },
                       { "SpecialToken": { "id": "[SEP]", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } },
                     { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { "[CLS]": token("[CLS]", CLS), "[SEP]": token("[SEP]", SEP) },
        },
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": { "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                   "max_input_chars_per_word": 100,
                   "vocab": { "[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "glass": 3, "cool": 4, "##s": 5,
                              "[": 6, "]": 7, "cl": 8 } },
    });
    Tokenizer::from_json(&json.to_string()).unwrap()
}

fn framed(ids: &[u32], is_cut: bool) -> Framed {
    Framed { ids: ids.to_vec(), is_cut }
}

#[test]
fn the_post_processor_frames_each_text_and_a_cut_spares_its_tokens() {
    let tokenizer = word_piece();
    let texts = ["Glass cools", "", "glass glass glass glass glass glass"];
    let whole = [
        framed(&[CLS, 3, 4, 5, SEP], false),
        framed(&[CLS, SEP], false),
        framed(&[CLS, 3, 3, 3, 3, 3, 3, SEP], false),
    ];
    assert_eq!(tokenizer.encode_framed(&texts, 8).unwrap(), whole);
    assert_eq!(tokenizer.encode_framed(&texts, usize::MAX).unwrap(), whole);
    let cut = [
        framed(&[CLS, 3, 4, SEP], true),
        framed(&[CLS, SEP], false),
        framed(&[CLS, 3, 3, SEP], true),
    ];
    assert_eq!(tokenizer.encode_framed(&texts, 4).unwrap(), cut);
    // The end is there already.
    assert_eq!(tokenizer.encode_ended(&texts, 4).unwrap(), cut);
    // Names of special tokens in a text are characters.
    let ids = &tokenizer.encode_framed(&["[CLS]"], 9).unwrap()[0].ids;
    assert_eq!(ids[..], [CLS, 6, 8, 5, 7, SEP]);
}

#[test]
fn without_a_post_processor_only_the_end_is_added() {
    let tokenizer = train(Pattern::Gpt2);
    let (text, end) = ("a truth universally acknowledged", tokenizer.end_of_document().unwrap());
    let ids = tokenizer.encode(text).unwrap();
    assert_eq!(tokenizer.encode_framed(&[text], 99).unwrap(), [framed(&ids, false)]);
    let ended = [&ids[..], &[end]].concat();
    assert_eq!(tokenizer.encode_ended(&[text], ended.len()).unwrap(), [framed(&ended, false)]);
    let cut = [&ids[..ids.len() - 1], &[end]].concat();
    assert_eq!(tokenizer.encode_ended(&[text], ids.len()).unwrap(), [framed(&cut, true)]);
}
