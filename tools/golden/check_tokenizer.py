"""Compares a tokenizer.json between lehr and Hugging Face's Python package, id by id.

Needs the Python package `tokenizers` and a built example:

    cargo build --release -p lehr-tokenizer --example encode
    python tools/golden/check_tokenizer.py target/release/examples/encode tokenizer.json TEXT_FILE...

Every line of the text files, whole stretches of them, and a list of difficult strings are encoded by
both, once as plain text and once with special tokens recognised. Exits with 1 at the first difference.
"""

import json
import random
import subprocess
import sys

from tokenizers import Tokenizer

DIFFICULT = [
    "", " ", "  ", "\n", "\r\n", " \n \n  x", "\t\tx \t", "a  b   c    d", "trailing   ", "\u00a0x\u00a0",
    "\u3000全角\u3000空格", "\u2028line\u2029para", "\u0085next", "\u200bzero\u200dwidth\ufeff",
    "don't DON'T I'LL we'Ve it'\u017f o'clock 's't", "1 12 123 1234 12345 ¹²³ ٣٤٥ Ⅷ 三千", "3.14159e-10,000",
    "滚滚长江东逝水，浪花淘尽英雄。是非成败转头空", "话说：“天下大势，分久必合！”\n\n　　周末七国", "mixed中文and English混排123测试",
    "日本語のテキスト、한국어 텍스트, ภาษาไทย, हिन्दी, العربية, עברית", "e\u0301 é ﬁ ß ẞ ĳ Ǆ ﬆ", "𝕳𝖊𝖑𝖑𝖔 𠮷野家 🦀👩‍👩‍👧‍👦🏳️‍🌈",
    "<|endoftext|>", "a<|end|>b <|user|> <|assistant|><|system|>", "<|endoftext", "<|<|end|>|>", "<|END|>",
    "def f(x):\n    return x ** 2  # comment\n\n\n", "https://example.org/?q=a%20b&c=d#e", "\x00\x01\x7f\x1b[0m",
    "!!!???...---===", "a" * 500, " " * 300, "\n" * 50, "哈" * 200, "Ġthe Ċ Â", "\ud7ff\ue000\uffff\U0010ffff",
]


def texts(paths):
    yield from DIFFICULT
    rng = random.Random(0)
    alphabet = "".join(DIFFICULT) + "  \n\n''"
    for _ in range(2000):
        yield "".join(rng.choice(alphabet) for _ in range(rng.randrange(40)))
    for path in paths:
        with open(path, encoding="utf-8", newline="") as file:
            text = file.read()
        yield from text.splitlines(keepends=True)
        for start in range(0, len(text), 5000):
            yield text[start : start + 5000]


def main():
    example, path, *files = sys.argv[1:]
    cases = list(texts(files))
    answer = subprocess.run(
        [example, path], input="".join(json.dumps(text) + "\n" for text in cases), capture_output=True, text=True, check=True
    )
    ours = [json.loads(line) for line in answer.stdout.splitlines()]
    assert len(ours) == len(cases), f"{len(ours)} answers to {len(cases)} texts"

    special, plain = Tokenizer.from_file(path), Tokenizer.from_file(path)
    plain.encode_special_tokens = True
    tokens = 0
    for text, pair in zip(cases, ours):
        theirs = [t.encode(text, add_special_tokens=False).ids for t in (plain, special)]
        if pair != theirs:
            sys.exit(f"different ids for {text[:200]!r}:\n  lehr         {pair}\n  Hugging Face {theirs}")
        tokens += len(pair[0])
        decoded = plain.decode(pair[0], skip_special_tokens=False)
        if decoded != text:
            sys.exit(f"Hugging Face decodes {text[:200]!r} as {decoded[:200]!r}")
    print(f"{len(cases)} texts, {tokens} tokens: all ids equal")


if __name__ == "__main__":
    main()
