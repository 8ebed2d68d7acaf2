"""Computes token classification with PyTorch and transformers: tiny models with random weights, f32 on the CPU.

    python tools/golden/taggers.py

writes crates/lehr-model/tests/tagger: for each family a folder that transformers saved, with golden.safetensors: input_ids [2, 12],
labels [2, 12] (-100 for none), logits [2, 12, 3], loss (the mean over the labels), and `grad.NAME` of every parameter.
"""

from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

SEED = 4400
OUT = Path(__file__).resolve().parents[2] / "crates/lehr-model/tests/tagger"
LABELS = ["O", "B-GLASS", "I-GLASS"]


def main():
    names = dict(id2label=dict(enumerate(LABELS)), label2id={name: i for i, name in enumerate(LABELS)})
    bert = transformers.BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=24, hidden_dropout_prob=0, attention_probs_dropout_prob=0, **names,
    )  # fmt: skip
    gpt2 = transformers.GPT2Config(
        vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=24, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        classifier_dropout=0.0, **names,
    )  # fmt: skip
    llama = transformers.LlamaConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        max_position_embeddings=24, **names,
    )  # fmt: skip
    llama.classifier_dropout = 0.0
    save("bert", transformers.BertForTokenClassification, bert)
    save("gpt2", transformers.GPT2ForTokenClassification, gpt2)
    save("llama", transformers.LlamaForTokenClassification, llama)


def save(name, model_class, config):
    torch.manual_seed(SEED)
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.dim() > 1 else 0.2))
    model = model.float().eval()
    ids = torch.randint(3, 40, (2, 12))
    labels = torch.randint(0, len(LABELS), (2, 12))
    labels[torch.rand(2, 12) < 0.3] = -100
    result = model(input_ids=ids, labels=labels)
    result.loss.backward()
    golden = {"input_ids": ids, "labels": labels, "logits": result.logits, "loss": result.loss}
    golden |= {f"grad.{n}": p.grad for n, p in model.named_parameters()}
    golden = {key: tensor.detach().clone().contiguous() for key, tensor in golden.items()}
    folder = OUT / name
    model.save_pretrained(folder)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "seed": str(SEED)}
    save_file(golden, folder / "golden.safetensors", versions)


if __name__ == "__main__":
    main()
