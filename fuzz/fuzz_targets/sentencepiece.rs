//! A SentencePiece model, and a round trip of a text through it. Seeds: the `.model` files in
//! `crates/lehr-tokenizer/tests/golden`.

#![no_main]

use lehr_tokenizer::Tokenizer;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(tokenizer) = Tokenizer::from_sentencepiece(bytes) else { return };
    if let Ok(ids) = tokenizer.encode("An oven, in which glass cools. 你好 🙂") {
        assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()));
        tokenizer.decode(&ids);
    }
});
