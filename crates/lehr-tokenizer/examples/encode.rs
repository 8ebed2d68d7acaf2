//! Prints the ids of texts, one JSON list a line: the Rust half of
//! `tools/golden/check_tokenizer.py`.
//!
//! Usage: `encode TOKENIZER [SAVE_AS]`, with one JSON string a line on standard input. TOKENIZER is
//! a file or folder of any kind; SAVE_AS is where to write it as a tokenizer.json. Each line of
//! output holds the ids as plain text, the ids with special tokens recognised, and the decoded
//! plain ids. The rate of encoding, of all texts one after the other, goes to standard error.

use std::io::{BufRead, Write};
use std::time::Instant;

use lehr_tokenizer::Tokenizer;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: encode TOKENIZER [SAVE_AS] < STRINGS.jsonl")?;
    let start = Instant::now();
    let tokenizer = Tokenizer::open(path)?;
    let opened = start.elapsed();
    if let Some(path) = arguments.next() {
        tokenizer.save(path)?;
    }
    let lines: Vec<String> = std::io::stdin().lock().lines().collect::<Result<_, _>>()?;
    let texts: Vec<String> =
        lines.iter().map(|line| serde_json::from_str(line)).collect::<Result<_, _>>()?;
    let start = Instant::now();
    let plain: Vec<Vec<u32>> =
        texts.iter().map(|text| tokenizer.encode(text)).collect::<Result<_, _>>()?;
    let seconds = start.elapsed().as_secs_f64();
    let bytes: usize = texts.iter().map(String::len).sum();
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for (text, plain) in texts.iter().zip(&plain) {
        let special = tokenizer.encode_with_special(text)?;
        let line = (plain, special, tokenizer.decode(plain));
        writeln!(out, "{}", serde_json::to_string(&line)?)?;
    }
    let rate = bytes as f64 / seconds / 1e6;
    writeln!(
        std::io::stderr(),
        "opened in {:.2} s; {rate:.2} MB/s of {bytes} bytes",
        opened.as_secs_f64()
    )?;
    Ok(())
}
