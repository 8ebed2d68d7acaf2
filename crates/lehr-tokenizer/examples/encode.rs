//! Prints the ids of texts, one JSON list a line: the Rust half of `tools/golden/check_tokenizer.py`.
//!
//! Usage: `encode TOKENIZER.json`, with one JSON string a line on standard input.

use std::io::{BufRead, Write};

use lehr_tokenizer::Tokenizer;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: encode TOKENIZER.json < STRINGS.jsonl")?;
    let tokenizer = Tokenizer::from_file(path)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for line in std::io::stdin().lock().lines() {
        let text: String = serde_json::from_str(&line?)?;
        let plain = tokenizer.encode(&text)?;
        let special = tokenizer.encode_with_special(&text)?;
        writeln!(out, "{}", serde_json::to_string(&(plain, special))?)?;
    }
    Ok(())
}
