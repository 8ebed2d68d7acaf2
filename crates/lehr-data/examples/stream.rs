//! Everything that pre-training does with text before the model: the split, the tokenizer, the
//! token shards.
//!
//! ```sh
//! /usr/bin/time -v cargo run --release -p lehr-data --example stream -- FILE CACHE
//! ```

#![allow(clippy::print_stdout, reason = "a program that prints measurements")]

use std::time::Instant;

use lehr_data::{Corpus, ReadOptions, SplitBy, SplitOptions, TextSplit, tokenize_cached};
use lehr_tokenizer::Trainer;

/// As in `lehr pretrain`.
const SAMPLE_BYTES: u64 = 100_000_000;
const VOCAB_SIZE: usize = 16_384;
const HELD_OUT: f64 = 0.05;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args_os().skip(1);
    let (Some(data), Some(cache)) = (args.next(), args.next()) else {
        return Err("give a file or folder of text, and a folder for the shards".into());
    };
    let start = Instant::now();
    let seconds = || start.elapsed().as_secs_f64();
    let options = ReadOptions::default();
    let split = SplitOptions { fraction: HELD_OUT, seed: 1, by: SplitBy::Source };
    let TextSplit { training: train, validation, .. } =
        Corpus::split(&data, &options, split, &mut |_| ())?;
    println!("{:.0} s: {} documents, {} bytes", seconds(), train.documents(), train.text_bytes());
    let mut error = None;
    let texts = train.sample(SAMPLE_BYTES)?.map_while(|document| match document {
        Ok(document) => Some(document.text),
        Err(first) => {
            error = Some(first);
            None
        }
    });
    let tokenizer = Trainer::new(VOCAB_SIZE).train(texts)?;
    if let Some(error) = error {
        return Err(error.into());
    }
    println!("{:.0} s: a tokenizer of {} ids", seconds(), tokenizer.vocab_size());
    for corpus in [train, validation] {
        let shards = tokenize_cached(&corpus, &tokenizer, &cache, &mut |_| ())?;
        println!("{:.0} s: {} tokens", seconds(), shards.tokens());
    }
    Ok(())
}
