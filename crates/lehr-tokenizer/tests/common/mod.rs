//! The small bilingual tokenizer that the tests share.

use lehr_tokenizer::{Pattern, Tokenizer, Trainer};

const ENGLISH: &str = "It is a truth universally acknowledged, that a single man in possession of \
    a good fortune, must be in want of a wife. She's sure it'll rain in 1813; they've 24,000 \
    reasons.\n";
const CHINESE: &str = "滚滚长江东逝水,浪花淘尽英雄。是非成败转头空,青山依旧在,几度夕阳红。\n\n话说天下大势,分久必合,合久必分。\n";

pub(crate) fn corpus() -> Vec<String> {
    (0..40).map(|i| format!("{ENGLISH}{i} {CHINESE}\tfn main() {{}}\r\n")).collect()
}

pub(crate) fn train(pattern: Pattern) -> Tokenizer {
    let trainer = Trainer { pattern, ..Trainer::new(400) };
    trainer.train(corpus()).unwrap()
}
