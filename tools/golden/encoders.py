"""Computes what stands on an encoder with PyTorch and transformers: tiny models with random weights, f32 on the CPU.

    python tools/golden/encoders.py

writes crates/lehr-model/tests/classifier (BertForSequenceClassification: logits, loss, gradients) and
crates/lehr-infer/tests/embedder (a folder of sentence-transformers: vectors of texts). README.md beside this file
describes the keys.
"""

import json
from pathlib import Path

import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file

SEED = 4300
ROOT = Path(__file__).resolve().parents[2] / "crates"


def config(**more):
    return transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
        **more,
    )


def randomize(model):
    """Moves weights off their symmetric start, so that every term matters."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.dim() > 1 else 0.2))
    return model.float().eval()


def metadata():
    return {"torch": torch.__version__, "transformers": transformers.__version__, "seed": str(SEED)}


def classifier(out):
    """A classifier of three named labels, and a batch of texts of unequal length."""
    torch.manual_seed(SEED)
    labels = dict(enumerate(["calm", "glad", "sad"]))
    settings = config(vocab_size=50, id2label=labels, label2id={name: i for i, name in labels.items()})
    model = randomize(transformers.BertForSequenceClassification(settings))
    lengths = torch.tensor([12, 5, 1, 9])
    ids = torch.randint(3, 50, (4, 12))
    mask = (torch.arange(12)[None] < lengths[:, None]).long()
    targets = torch.tensor([0, 2, 1, 2])
    result = model(input_ids=ids * mask, attention_mask=mask, labels=targets)
    result.loss.backward()
    golden = {"input_ids": ids * mask, "lengths": lengths, "labels": targets}
    golden |= {"logits": result.logits, "loss": result.loss}
    golden |= {f"grad.{n}": p.grad for n, p in model.named_parameters()}
    model.save_pretrained(out)
    golden = {key: tensor.detach().clone().contiguous() for key, tensor in golden.items()}
    save_file(golden, out / "golden.safetensors", metadata())


TEXTS = [
    "The glass cools.", "glass", "", "Lehr: the oven in which GLASS is annealed, slowly, for days.", "玻璃慢慢冷却。", "🙂 [CLS]",
    "a lens, a bowl, a pane", "The oven is hot; the glass is not.", "no no no no no no no no no no no no no no no no no no no no",
]  # fmt: skip


def word_piece():
    """A tokenizer as BERT's, with the truncation and padding that published files have."""
    words = ["the", "glass", "oven", "is", "lens", "bowl", "no", "##ed", "##ing", "##ow", "cool", "slow", "玻", "璃"]
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = names + words + letters + ["##" + letter for letter in letters] + list(".,:;")
    model = tokenizers.models.WordPiece({w: i for i, w in enumerate(vocab)}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.add_special_tokens(names)
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    return tokenizer


def embedder(out):
    """An encoder without head and prefix, in the files of sentence-transformers, and the vectors of TEXTS."""
    torch.manual_seed(SEED + 1)
    tokenizer, longest = word_piece(), 16
    model = randomize(transformers.BertModel(config(vocab_size=tokenizer.get_vocab_size())))
    model.save_pretrained(out)
    # Older files hold this buffer too.
    weights = load_file(out / "model.safetensors") | {"embeddings.position_ids": torch.arange(40)[None]}
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    kinds = ["Transformer", "Pooling", "Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    flags = {f"pooling_mode_{mode}": mode == "mean_tokens" for mode in ["cls_token", "mean_tokens", "max_tokens"]}
    (out / "1_Pooling").mkdir(exist_ok=True)
    write(out / "modules.json", modules)
    write(out / "1_Pooling/config.json", {"word_embedding_dimension": 32} | flags)
    write(out / "sentence_bert_config.json", {"max_seq_length": longest, "do_lower_case": False})
    tokenizer.encode_special_tokens = True
    tokenizer.enable_truncation(longest)
    ids = [tokenizer.encode(text).ids for text in TEXTS]
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    with torch.no_grad():
        hidden = [model(torch.tensor([row])).last_hidden_state[0] for row in ids]
    unit = lambda rows: torch.nn.functional.normalize(torch.stack(rows), dim=1)
    golden = {"mean": unit([h.mean(0) for h in hidden]), "first": unit([h[0] for h in hidden])}
    golden |= {"last": unit([h[-1] for h in hidden]), "lengths": torch.tensor([len(row) for row in ids])}
    save_file(golden, out / "golden.safetensors", metadata())
    write(out / "texts.json", TEXTS)


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def main():
    torch.set_num_threads(1)
    for make, folder in [(classifier, "lehr-model/tests/classifier"), (embedder, "lehr-infer/tests/embedder")]:
        out = ROOT / folder
        out.mkdir(parents=True, exist_ok=True)
        make(out)
        print(f"{folder}: {sum(f.stat().st_size for f in out.rglob('*') if f.is_file())} bytes")


if __name__ == "__main__":
    main()
