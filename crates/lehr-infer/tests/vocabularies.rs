//! Vocabularies of GGUF files compared with the ids that llama.cpp expects.
//!
//! `scripts/get-fixtures.sh` fetches the files, which are too large to commit. Without
//! `LEHR_FIXTURES` this test is skipped; lehr-tokenizer's tests cover each kind with a small file.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../lehr-model/tests/common/fixtures.rs"]
mod fixtures;

use std::path::Path;

use lehr_infer::gguf_tokenizer;
use lehr_model::io::gguf::read_metadata;
use lehr_tokenizer::Tokenizer;

/// Vocabularies with expected ids, and their number of texts.
const EXPECTED: [(&str, usize); 15] = [
    ("bert-bge", 46),
    ("command-r", 46),
    ("deepseek-coder", 46),
    ("deepseek-llm", 46),
    ("falcon", 46),
    ("gemma-4", 46),
    ("gpt-2", 46),
    ("llama-bpe", 46),
    ("llama-spm", 46),
    ("mpt", 46),
    ("phi-3", 46),
    ("qwen2", 46),
    ("qwen35", 50),
    ("refact", 46),
    ("starcoder", 46),
];

/// Vocabularies without expected ids: their size.
const OTHERS: [(&str, usize); 4] =
    [("aquila", 100_008), ("baichuan", 64_000), ("gpt-neox", 50_432), ("nomic-bert-moe", 250_048)];

fn open(folder: &Path, name: &str) -> Tokenizer {
    let path = folder.join(format!("ggml-vocab-{name}.gguf"));
    let bytes = std::fs::read(&path).unwrap();
    gguf_tokenizer(&read_metadata(&path, &bytes).unwrap()).unwrap()
}

#[test]
fn ids_of_gguf_vocabularies_are_those_of_llama_cpp() {
    let Some(folder) = fixtures::path("LEHR_FIXTURES") else { return };
    let folder = folder.as_path();
    for (name, count) in EXPECTED {
        let tokenizer = open(folder, name);
        let read = |end: &str| {
            std::fs::read_to_string(folder.join(format!("ggml-vocab-{name}.gguf.{end}"))).unwrap()
        };
        let (texts, ids) = (read("inp"), read("out"));
        let again = Tokenizer::from_json(&tokenizer.to_json()).unwrap();
        let mut compared = 0;
        // The last separator ends the last text.
        for (text, ids) in texts.split("\n__ggml_vocab_test__\n").zip(ids.lines()) {
            let ids: Vec<u32> = ids.split_whitespace().map(|id| id.parse().unwrap()).collect();
            assert_eq!(tokenizer.encode(text).unwrap(), ids, "{name}: {text:?}");
            assert_eq!(again.encode(text).unwrap(), ids, "{name}, saved: {text:?}");
            compared += 1;
        }
        assert_eq!(compared, count, "{name}");
    }
    for (name, size) in OTHERS {
        let tokenizer = open(folder, name);
        assert_eq!(tokenizer.vocab_size(), size, "{name}");
        let text = "It is a truth, 2024";
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()), text, "{name}");
    }
}
