"""Trains a small tokenizer of every kind lehr imports, and writes what its reference library makes of difficult strings.

    python tools/golden/tokenizers_small.py

Writes `crates/lehr-tokenizer/tests/golden`: the tokenizer files, and `expected.json` with the strings and, by name, the ids
from `sentencepiece`, `tiktoken` or `tokenizers`. The texts are the bundled ones.
"""

import base64
import io
import json
from pathlib import Path

import sentencepiece
import tiktoken
from check_tokenizer import DIFFICULT, PATTERNS
from tokenizers import BertWordPieceTokenizer, Tokenizer, decoders, models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "crates/lehr-tokenizer/tests/golden"
GLM = ["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>", "<|tab|>"]
GLM += [f"<|blank_{count}|>" for count in range(2, 81)]
# What SentencePiece is to normalise: full-width letters, a ligature, other spaces.
RULES = "FF21\t41\nFB01\t66 69\n3000\t20\n9\t20\nA0\t20\nE9\t65\n65 301\t65\n"


def corpus():
    lines = []
    for name, size in [("en_austen", 120000), ("zh_sanguo", 2500)]:
        text = (ROOT / f"data/pretrain/{name}.txt").read_text(encoding="utf-8")
        lines += [line for line in text[20000 : 20000 + size].splitlines() if line.strip()]
    return [*lines, *(text for text in DIFFICULT if 0 < len(text) < 60)] + ["def f(x):\n    return  x ** 2", "a    b     c"] * 20


def spm(name, lines, **options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, minloglevel=2, num_threads=1, character_coverage=0.98, hard_vocab_limit=False, **options
    )
    (OUT / f"{name}.model").write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def chatglm(text):
    """What ChatGLM-6B does to a text before SentencePiece."""
    text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
    for count in range(80, 1, -1):
        text = text.replace(" " * count, f"<|blank_{count}|>")
    return text


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    rules = OUT / "rules.tsv"
    lines = corpus()
    raw = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    cases = [text if len(text) < 120 else text[:90] for text in DIFFICULT] + lines[::200]
    expected = {"cases": cases, "ids": {}, "pieces": {}}

    rules.write_text(RULES)
    processors = {
        "unigram": spm("unigram", lines, model_type="unigram", vocab_size=900, normalization_rule_tsv=str(rules), user_defined_symbols=["<sym>", "哈哈"]),
        "unigram_bytes": spm("unigram_bytes", lines, model_type="unigram", vocab_size=900, byte_fallback=True, **raw),
        "bpe": spm("bpe", lines, model_type="bpe", vocab_size=1100, byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True, **raw),
        "bpe_symbols": spm("bpe_symbols", lines, model_type="bpe", vocab_size=900, byte_fallback=True, user_defined_symbols=["<sym>", "a.b", "哈哈"], **raw),
        "bpe_no_prefix": spm(
            "bpe_no_prefix", lines, model_type="bpe", vocab_size=900, byte_fallback=True, add_dummy_prefix=False,
            user_defined_symbols=["\n\n", "\n\n\n", "▁▁", "▁▁▁", "<td>"], control_symbols=["<turn>"], **raw,
        ),
        "chatglm": spm(
            "chatglm", lines, model_type="unigram", vocab_size=1100, byte_fallback=True, pad_id=3, user_defined_symbols=["<n>", *GLM],
            normalization_rule_name="identity", remove_extra_whitespaces=True,
        ),
    }
    rules.unlink()
    for name, processor in processors.items():
        prepare = chatglm if name == "chatglm" else str
        expected["ids"][name] = [processor.encode(prepare(text)) for text in cases]
        expected["pieces"][name] = processor.get_piece_size()

    # GPT-2's files and tiktoken's, from one byte-level vocabulary.
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False))
    bpe.model.save(str(OUT))
    expected["ids"]["gpt2"] = [bpe.encode(text).ids for text in cases]
    byte = {char: value for char, value in zip(alphabet, map(ord, alphabet)) if value < 256}
    rest = sorted(char for char in alphabet if ord(char) >= 256)
    byte.update(zip(rest, sorted(set(range(256)) - set(byte.values()))))
    vocab = sorted(bpe.get_vocab().items(), key=lambda item: item[1])
    ranks = {bytes(byte[char] for char in token): rank for token, rank in vocab}
    (OUT / "small.tiktoken").write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()))
    encoding = tiktoken.Encoding("small", pat_str=PATTERNS["cl100k_base"], mergeable_ranks=ranks, special_tokens={})
    expected["ids"]["tiktoken"] = [encoding.encode_ordinary(text) for text in cases]

    bert = BertWordPieceTokenizer(lowercase=True)
    bert.train_from_iterator(lines, vocab_size=900, show_progress=False)
    bert.save_model(str(OUT), "bert")
    bert = BertWordPieceTokenizer(str(OUT / "bert-vocab.txt"), lowercase=True)._tokenizer
    bert.encode_special_tokens = True
    expected["ids"]["bert"] = [bert.encode(text, add_special_tokens=False).ids for text in cases]
    bert.encode_special_tokens = False
    expected["ids"]["bert_framed"] = [bert.encode(text).ids for text in cases if "[" not in text]
    pair = bert.encode("It is a truth", "universally 长江")
    expected["bert_pair"] = {"ids": pair.ids, "type_ids": pair.type_ids}

    (OUT / "expected.json").write_text(json.dumps(expected, ensure_ascii=True, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
