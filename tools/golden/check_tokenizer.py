"""Compares a tokenizer of any kind between lehr and its reference library, id by id.

Needs the Python packages of requirements.txt that the references below come from, and a built example:

    cargo build --release -p lehr-tokenizer --example encode
    python tools/golden/check_tokenizer.py target/release/examples/encode TOKENIZER [REFERENCE] TEXT_FILE...

TOKENIZER is what lehr opens: a file or a folder. REFERENCE says what to compare with:

    hf:FILE             a tokenizer.json, with `tokenizers` (the default, if TOKENIZER is one)
    spm:FILE            a SentencePiece model, with `sentencepiece`
    tiktoken:FILE:NAME  a rank file, with `tiktoken`; NAME is the encoding whose pattern it has (gpt2, cl100k_base,
                        o200k_base, qwen)
    bert:FILE           a vocab.txt for lower-case text, with `tokenizers`
    cased:FILE          the same for text as it is

Every line of the text files, whole stretches of them, and a list of difficult strings are encoded by both, and the ids
decoded. lehr also writes the tokenizer as a tokenizer.json, which `tokenizers` loads; its ids are compared too, on every
tenth text. Prints the differences and exits with 1 if there are any.
"""

import base64
import json
import os
import random
import subprocess
import sys
import tempfile

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
    "<s>", "</s>", "x</s>y<s>", "<unk>", "<0x41>", "a<0x0A>b", "[CLS] [SEP] [MASK] [UNK] [PAD]", "<bos><eos><pad>", "▁", "▁▁x ▁",
    "\t" * 9 + "x", "  \n\t \n  ", "\u202eRTL\u202c \u2066iso\u2069", "a\u0300\u0301\u0302\u0303z", "Z\u0335\u0321a\u0336\u0322l\u0337g\u0338o\u0334",
    "👨🏽‍💻👩🏿‍🚀🧑‍🧑‍🧒‍🧒🇩🇪🇨🇳☝🏻", "ᄒ\u1161\u11ab글", "กำแพง ที่", "؟كيف\u0640\u0640\u064b\u0651", "½ ⅓ ㎏ ㍿ ﷺ Å Ω ſ", "\u00ad\u034f\u180e\u2060",
    " x" * 200, "ab " * 300, "0" * 400, "." * 300, "-" * 129, "=" * 257, "\r\r\n\n\r", "\x0b\x0c\x1c\x1d", "<n><|tab|><|blank_3|>",
]
PATTERNS = {
    "gpt2": r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""",
    "cl100k_base": r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s""",
    "qwen": r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
    "o200k_base": "|".join([
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""\p{N}{1,3}""", r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""", r"""\s*[\r\n]+""", r"""\s+(?!\S)""", r"""\s+""",
    ]),
}


def texts(paths):
    yield from DIFFICULT
    rng = random.Random(0)
    alphabet = "".join(DIFFICULT) + "  \n\n''"
    for _ in range(2000):
        yield "".join(rng.choice(alphabet) for _ in range(rng.randrange(40)))
    for path in paths:
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            text = file.read()
        half = len(text) // 2
        yield from text[:half].splitlines(keepends=True)
        for start in range(half, len(text), 5000):
            yield text[start : start + 5000]


class HuggingFace:
    def __init__(self, plain):
        self.plain = plain
        self.plain.encode_special_tokens = True

    def encode(self, cases):
        for start in range(0, len(cases), 1000):
            for encoding in self.plain.encode_batch_fast(cases[start : start + 1000], add_special_tokens=False):
                yield encoding.ids

    def decode(self, ids):
        return self.plain.decode(ids, skip_special_tokens=False)


class SentencePiece:
    def __init__(self, path):
        import sentencepiece

        self.model = sentencepiece.SentencePieceProcessor(model_file=path)

    def encode(self, cases):
        return (self.model.encode(text) for text in cases)

    def decode(self, ids):
        """Its own mark for what is unknown is another."""
        return None if self.model.unk_id() in ids else self.model.decode(ids)


class Tiktoken:
    def __init__(self, path, name):
        import tiktoken

        with open(path, "rb") as file:
            lines = (line.split() for line in file if line.strip())
            ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
        self.encoding = tiktoken.Encoding(name, pat_str=PATTERNS[name], mergeable_ranks=ranks, special_tokens={})

    def encode(self, cases):
        return (self.encoding.encode_ordinary(text) for text in cases)

    def decode(self, ids):
        return self.encoding.decode(ids)


def reference(what):
    kind, path = what.split(":", 1)
    if kind == "hf":
        return HuggingFace(Tokenizer.from_file(path))
    if kind in ("bert", "cased"):
        from tokenizers import BertWordPieceTokenizer

        return HuggingFace(BertWordPieceTokenizer(path, lowercase=kind == "bert")._tokenizer)
    return SentencePiece(path) if kind == "spm" else Tiktoken(*path.rsplit(":", 1))


def compare(name, cases, ours, theirs):
    """Counts and shows the texts whose ids differ."""
    different = 0
    for text, ids, other in zip(cases, ours, theirs, strict=True):
        if ids != other:
            different += 1
            if different <= 3:
                at = next((i for i, pair in enumerate(zip(ids, other)) if pair[0] != pair[1]), 0)
                print(f"  {name}: {text[:80]!r} at {at}:\n    lehr {ids[at:at + 12]}\n    {name} {other[at:at + 12]}")
    return different


def main():
    example, path, *files = sys.argv[1:]
    what = files.pop(0) if files and files[0].split(":")[0] in ("hf", "spm", "tiktoken", "bert", "cased") else f"hf:{path}"
    cases = list(texts(files))
    with tempfile.TemporaryDirectory() as folder:
        saved = os.path.join(folder, "tokenizer.json")
        answer = subprocess.run(
            [example, path, saved],
            input="".join(json.dumps(text) + "\n" for text in cases).encode(),
            stdout=subprocess.PIPE,
            check=True,
        )
        written, special = Tokenizer.from_file(saved), Tokenizer.from_file(saved)
    ours = [json.loads(line) for line in answer.stdout.decode().removesuffix("\n").split("\n")]
    assert len(ours) == len(cases), f"{len(ours)} answers to {len(cases)} texts"

    theirs = reference(what)
    plain = [answer[0] for answer in ours]
    bad = compare(what.split(":")[0], cases, plain, theirs.encode(cases))
    some = slice(None, None, 10)
    bad_saved = compare("saved", cases[some], plain[some], HuggingFace(written).encode(cases[some]))
    recognised = (special.encode(text, add_special_tokens=False).ids for text in cases[some])
    bad_special = compare("special", cases[some], [answer[1] for answer in ours[some]], recognised)
    bad_decoded = lossless = 0
    for text, (ids, _, decoded) in zip(cases, ours):
        lossless += decoded == text
        other = text if decoded == text else theirs.decode(ids)
        if other is not None and decoded != other:
            bad_decoded += 1
            if bad_decoded <= 3:
                print(f"  decoding {text[:60]!r}:\n    lehr {decoded[:60]!r}\n    reference {other[:60]!r}")
    size, tokens = sum(len(text.encode()) for text in cases), sum(map(len, plain))
    print(
        f"{len(cases)} texts, {size} bytes, {tokens} tokens: {bad} differ from {what.split(':')[0]}; saved and loaded again: "
        f"{bad_saved} differ, {bad_special} with special tokens recognised; {bad_decoded} decoded otherwise; "
        f"{lossless} of {len(cases)} come back unchanged"
    )
    sys.exit(1 if bad + bad_saved + bad_special + bad_decoded else 0)


if __name__ == "__main__":
    main()
