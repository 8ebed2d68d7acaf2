"""GLM-130B in plain PyTorch, from its description, for a tiny model with random weights in f32 on the CPU.

    python tools/golden/glm130b.py OUT_DIR                     # config.json, model.safetensors, golden.safetensors
    python tools/golden/glm130b.py split MODEL_DIR OUT_DIR N   # the N parts of a tensor-parallel checkpoint, .pt
    python tools/golden/glm130b.py split MODEL_DIR OUT_DIR N safetensors
    python tools/golden/glm130b.py parts OUT_DIR               # a smaller model in 16 bits: whole/ and its two parts in two/

The published model needs eight graphics cards and has no other implementation to compare with, so this one is written for
reading: one sequence at a time, one function per sentence of the description, gradients by autograd, generation by computing
everything again for every token. Sources: Zeng et al. 2022 (arXiv 2210.02414, section 2 and appendices), and the inference
code published with it (github.com/THUDM/GLM-130B, github.com/THUDM/SwissArmyTransformer). README.md describes the keys.
"""

import json
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

SEED = 4300
TOKENS = 24
PROMPT, GREEDY = 10, 20
IGNORED = -100

CONFIG = {
    "model_type": "glm130b",
    "vocab_size": 160,
    "hidden_size": 64,
    "inner_hidden_size": 96,
    "num_layers": 3,
    "num_attention_heads": 8,
    "max_sequence_length": 64,
    "layernorm_epsilon": 1e-5,
    "mask_token_id": 150,
    "gmask_token_id": 151,
    "smask_token_id": 152,
    "eod_token_id": 153,
    "sop_token_id": 154,
    "eop_token_id": 155,
}


def new_weights(c):
    """Random weights under the names of the published checkpoint; nothing is left at 0 or 1."""

    def normal(*shape, std):
        return torch.randn(*shape) * std

    d, f, weights = c["hidden_size"], c["inner_hidden_size"], {}

    def linear(name, n_out, n_in):
        weights[f"{name}.weight"] = normal(n_out, n_in, std=0.1)
        weights[f"{name}.bias"] = normal(n_out, std=0.1)

    def norm(name):
        weights[f"{name}.weight"] = 1 + normal(d, std=0.1)
        weights[f"{name}.bias"] = normal(d, std=0.1)

    weights["transformer.word_embeddings.weight"] = normal(c["vocab_size"], d, std=0.1)
    for i in range(c["num_layers"]):
        layer = f"transformer.layers.{i}"
        norm(f"{layer}.input_layernorm")
        linear(f"{layer}.attention.query_key_value", 3 * d, d)
        linear(f"{layer}.attention.dense", d, d)
        norm(f"{layer}.post_attention_layernorm")
        linear(f"{layer}.mlp.dense_h_to_4h", 2 * f, d)
        linear(f"{layer}.mlp.dense_4h_to_h", d, f)
    norm("transformer.final_layernorm")
    return weights


def divide(c, ids):
    """Position of each token and which it does not see (True = blocked).

    Columns before <sop> are seen by all, the others by what comes after them. What is asked for by [MASK], or by [sMASK] if
    there is none, stands from <sop> on at the place of that token; what is asked for by [gMASK] counts on.
    """
    t = len(ids)
    context = ids.index(c["sop_token_id"])
    before = ids[:context]
    positions = list(range(t))
    for key in ["mask_token_id", "smask_token_id"]:
        if c[key] in before:
            positions[context:] = [before.index(c[key])] * (t - context)
            break
    else:
        assert c["gmask_token_id"] in before
    blocked = [[column > row and column >= context for column in range(t)] for row in range(t)]
    return torch.tensor(positions), torch.tensor(blocked)


def rotate(x, positions):
    """RoPE over the whole head, x [T, H, E]: dimension j is paired with j + E/2, base 10000."""
    e = x.shape[-1]
    angles = positions[:, None].double() * 10000.0 ** (-torch.arange(0, e, 2).double() / e)
    cos, sin = angles.cos().float()[:, None], angles.sin().float()[:, None]
    a, b = x[..., : e // 2], x[..., e // 2 :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def attention(c, w, name, layer, u, positions, blocked):
    """The rows of query_key_value are q, k and v of the first head, then those of the second, and so on. Scores are
    masked while divided by layer + 1, and multiplied by it again, as the model does to stay within 16 bits."""
    t, d = u.shape
    heads = c["num_attention_heads"]
    e = d // heads
    qkv = F.linear(u, w[f"{name}.query_key_value.weight"], w[f"{name}.query_key_value.bias"])
    q, k, v = qkv.view(t, heads, 3, e).unbind(2)
    q = rotate(q, positions) / (math.sqrt(e) * (layer + 1))
    scores = torch.einsum("qhe,khe->hqk", q, rotate(k, positions))
    scores = scores.masked_fill(blocked, -10000.0) * (layer + 1)
    mixed = torch.einsum("hqk,khe->qhe", scores.softmax(-1), v).reshape(t, d)
    return F.linear(mixed, w[f"{name}.dense.weight"], w[f"{name}.dense.bias"])


def mlp(w, name, m):
    """GeGLU: the first half of the wide layer times the GELU (erf) of the second."""
    x1, x2 = F.linear(m, w[f"{name}.dense_h_to_4h.weight"], w[f"{name}.dense_h_to_4h.bias"]).chunk(2, -1)
    return F.linear(x1 * F.gelu(x2), w[f"{name}.dense_4h_to_h.weight"], w[f"{name}.dense_4h_to_h.bias"])


def logits_of(c, w, ids):
    """Logits [T, V] of one sequence. The residual is α times what comes out of the norm; the head is the embedding."""

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], c["layernorm_epsilon"])

    positions, blocked = divide(c, ids)
    alpha = math.sqrt(2 * c["num_layers"])
    h = w["transformer.word_embeddings.weight"][torch.tensor(ids)]
    for i in range(c["num_layers"]):
        layer = f"transformer.layers.{i}"
        u = norm(f"{layer}.input_layernorm", h)
        h = alpha * u + attention(c, w, f"{layer}.attention", i, u, positions, blocked)
        m = norm(f"{layer}.post_attention_layernorm", h)
        h = alpha * m + mlp(w, f"{layer}.mlp", m)
    return norm("transformer.final_layernorm", h) @ w["transformer.word_embeddings.weight"].T


def batch(c):
    """Three texts: one asks with [gMASK], one with [MASK] and one with [sMASK], which counts before its [gMASK]."""
    ids = torch.randint(3, c["mask_token_id"], (3, TOKENS))
    context = [8, 12, 15]
    ids[0, 7] = c["gmask_token_id"]
    ids[1, 4] = c["mask_token_id"]
    ids[2, 6], ids[2, 10] = c["smask_token_id"], c["gmask_token_id"]
    labels = ids.clone()
    for row, at in enumerate(context):
        ids[row, at] = c["sop_token_id"]
        labels[row, : at + 1] = IGNORED
    ids[1, -1] = labels[1, -1] = c["eop_token_id"]
    labels[0, 15:17] = IGNORED
    return ids, labels


def compute(c, w):
    """Everything golden.safetensors holds."""
    for value in w.values():
        value.requires_grad_()
    ids, labels = batch(c)
    logits = torch.stack([logits_of(c, w, row.tolist()) for row in ids])
    loss = F.cross_entropy(logits[:, :-1].reshape(-1, c["vocab_size"]), labels[:, 1:].reshape(-1), ignore_index=IGNORED)
    loss.backward()
    greedy = ids[0, :PROMPT].tolist()
    with torch.no_grad():
        for _ in range(GREEDY):
            greedy.append(int(logits_of(c, w, greedy)[-1].argmax()))
    divided = [divide(c, row.tolist()) for row in ids]
    golden = {
        "input_ids": ids,
        "labels": labels,
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.stack([positions for positions, _ in divided])[:, None],
        "attention_blocked": torch.stack([blocked for _, blocked in divided])[:, None].to(torch.uint8),
        "logits": logits,
        "loss": loss,
        "greedy": torch.tensor(greedy),
    }
    golden |= {f"grad.{name}": value.grad for name, value in w.items()}
    return {key: value.detach().clone().contiguous() for key, value in golden.items()}


def cut(name, whole, rank, n):
    """The part of a tensor that processor `rank` of `n` has."""

    def rows(x):
        return x.chunk(n, 0)[rank]

    if "word_embeddings" in name or "query_key_value" in name:
        return rows(whole)
    if "dense_h_to_4h" in name:
        x1, x2 = whole.chunk(2, 0)
        return torch.cat([rows(x1), rows(x2)], 0)
    if name.endswith(("dense.weight", "dense_4h_to_h.weight")):
        return whole.chunk(n, 1)[rank]
    return whole


def split(model, out, n, form):
    """Writes the parts of a model as they are published: the weights under the key "module"."""
    weights = load_file(model / "model.safetensors")
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text((model / "config.json").read_text())
    for rank in range(n):
        part = {name: cut(name, whole, rank, n).clone().contiguous() for name, whole in weights.items()}
        path = out / f"mp_rank_{rank:02}_model_states.{form}"
        if form == "safetensors":
            save_file(part, path)
        else:
            torch.save({"module": part}, path)


def write_model(out, c, weights):
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_text(json.dumps(c, indent=2) + "\n")


def parts(out):
    """What the reading of parts is tested with: the smallest model of which each rule changes something."""
    c = CONFIG | {"hidden_size": 8, "inner_hidden_size": 6, "num_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(SEED + 1)
    write_model(out / "whole", c, {name: value.half() for name, value in new_weights(c).items()})
    split(out / "whole", out / "two", 2, "pt")


def main():
    torch.set_num_threads(1)
    if sys.argv[1] == "parts":
        return parts(Path(sys.argv[2]))
    if sys.argv[1] == "split":
        model, out, n = Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
        return split(model, out, n, sys.argv[5] if len(sys.argv) > 5 else "pt")
    out = Path(sys.argv[1])
    torch.manual_seed(SEED)
    weights = new_weights(CONFIG)
    write_model(out, CONFIG, weights)
    golden = compute(CONFIG, weights)
    save_file(golden, out / "golden.safetensors", {"torch": torch.__version__, "seed": str(SEED)})
    print(f"{out.name:20} loss {golden['loss'].item():.6f} {sum(w.numel() for w in weights.values())} values")


if __name__ == "__main__":
    main()
