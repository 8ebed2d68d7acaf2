"""Compares vectors of texts with those of Hugging Face transformers: mean pooling, then length 1.

    python tools/golden/embeddings.py texts > texts.jsonl           100 texts of all kinds, as {"text": …}
    lehr embed MODEL --data texts.jsonl --out vectors.jsonl         blank texts are left out; -t "" embeds one
    python tools/golden/embeddings.py compare MODEL vectors.jsonl

MODEL is a folder of sentence-transformers with a BERT encoder, such as all-MiniLM-L6-v2. `compare` prints the least cosine
and the largest difference, and fails below 0.9999.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import BertModel, BertTokenizerFast

LEAST = 0.9999

ENGLISH = [
    "The glass is cooled slowly in the lehr.", "A quick brown fox jumps over the lazy dog.", "Stocks fell sharply on Monday.",
    "How do I reset my password?", "The mitochondria is the powerhouse of the cell.", "Don't panic!", "it's 3.14159, isn't it?",
    "E = mc^2", "SELECT name FROM users WHERE id = 7;", "def f(x):\n    return x ** 2", "https://example.com/a?b=c&d=%20e",
    "The U.S. economy grew 2.5% in Q3.", "naïve café résumé Ångström", "MiXeD CaSe TeXt", "antidisestablishmentarianism",
    "a", ".", "I love this film.", "I hate this film.", "Photosynthesis turns light into sugar.", "He said: \"No — never…\"",
]  # fmt: skip
CHINESE = [
    "今天天气很好。", "玻璃在退火炉中慢慢冷却。", "我喜欢机器学习。", "滚滚长江东逝水,浪花淘尽英雄。", "你好,world!", "中文 English 混合 text",
    "数据", "请问怎么重置密码?", "股市周一大跌。", "ひらがなとカタカナ", "한국어 문장입니다", "русский текст", "العربية", "हिन्दी", "Ελληνικά",
]  # fmt: skip
ODD = [
    "", " ", "\t", "🙂", "🙂🙃 👩‍👩‍👧‍👦 🇩🇪", "I ❤️ glass", "[CLS] not a token [SEP]", "[MASK]", "a\u0000b", "\u200bzero\u200bwidth", "ﬁne ligature",
    "x" * 150, "word " * 300, "很长" * 200, "The end. " * 90, "1234567890 " * 40, "??!!..,,;;::", "______", "#hashtag @user", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
]  # fmt: skip


def texts():
    """100 texts: languages, lengths, symbols, and combinations of them."""
    fixed = ENGLISH + CHINESE + ODD
    pairs = [f"{ENGLISH[i % len(ENGLISH)]} {(ENGLISH + CHINESE)[(7 * i + 3) % 36]}" for i in range(100 - len(fixed))]
    return fixed + pairs


def reference(folder, batch):
    """Vectors of `batch`, one by one, as sentence-transformers makes them."""
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    settings = Path(folder) / "sentence_bert_config.json"
    longest = json.loads(settings.read_text())["max_seq_length"] if settings.exists() else 512
    model = BertModel.from_pretrained(folder, attn_implementation="eager").float().eval()
    vectors = []
    with torch.no_grad():
        for text in batch:
            # Names of special tokens in a text are plain characters to lehr.
            ids = tokenizer.backend_tokenizer
            ids.encode_special_tokens = True
            ids.no_padding()
            ids.enable_truncation(longest)
            inputs = torch.tensor([ids.encode(text.strip()).ids])
            hidden = model(inputs).last_hidden_state[0]
            vectors.append(torch.nn.functional.normalize(hidden.mean(0), dim=0))
    return torch.stack(vectors)


def compare(folder, path):
    """Prints how far the vectors in `path` are from the reference; whether they are near enough."""
    records = [json.loads(line) for line in Path(path).read_text().splitlines()]
    found = torch.tensor([record["embedding"] for record in records])
    wanted = reference(folder, [record["text"] for record in records])
    cosines = (found.double() * wanted.double()).sum(1)
    worst = cosines.argmin().item()
    difference = (found - wanted).abs().max().item()
    print(f"{len(records)} texts: least cosine {cosines[worst]:.9f} ({records[worst]['text'][:40]!r}), "
          f"largest difference {difference:.2e}")  # fmt: skip
    return cosines[worst] >= LEAST


def main():
    torch.set_num_threads(1)
    match sys.argv[1:]:
        case ["texts"]:
            for text in texts():
                print(json.dumps({"text": text}, ensure_ascii=False))
        case ["compare", folder, path]:
            sys.exit(0 if compare(folder, path) else 1)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
