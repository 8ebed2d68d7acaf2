"""Computes tiny models of lehr's own family in PyTorch, in f32 on the CPU, from the definition in docs/models.md.

    python tools/golden/lehr_family.py OUT_DIR [NAME...]

writes one folder per model with the same files and keys as models.py. No other program has this family, so this script is
its second implementation: it knows nothing of the first but the names of the parameters.
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from models import batch

SEED = 5200
GATE_CHANNELS = 12

SIZES = {
    "model_type": "lehr",
    "architectures": ["LehrForCausalLM"],
    "lehr_version": 1,
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.02,
    "rope_theta": 10000.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
# All parts together, and a few beside the parts of a Llama.
MODELS = {
    "lehr": SIZES
    | {
        "num_hidden_layers": 4,
        "tie_word_embeddings": False,
        "mlp": "relu2",
        "norm_weights": False,
        "embedding_norm": True,
        "qk_norm": True,
        "qk_norm_gain": 1.2,
        "zero_init_outputs": True,
        "final_logit_softcapping": 1.5,
        "residual_scalars": True,
        "x0_scalars": True,
        "value_embeddings": True,
        "bigram_rows": 83,
        "smear": True,
        "backout": True,
        "key_offset": True,
    },
    "lehr-some": SIZES
    | {
        "num_hidden_layers": 3,
        "tie_word_embeddings": True,
        "mlp": "swiglu",
        "x0_scalars": True,
        "bigram_rows": 40,
        "backout": True,
    },
}


def shapes(c):
    """Names and shapes of the parameters."""
    v, d, f, n = c["vocab_size"], c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"]
    e = d // c["num_attention_heads"]
    kv = e * c["num_key_value_heads"]
    on = lambda key, default=False: c.get(key, default)
    yield "model.embed_tokens.weight", (v, d)
    if on("smear"):
        yield "model.smear_gate.weight", (1, GATE_CHANNELS)
        yield "model.smear_scale", (1,)
    if on("bigram_rows"):
        yield "model.bigram_embed.weight", (c["bigram_rows"], d)
    for layer in range(n):
        p = f"model.layers.{layer}."
        for key, name in [("residual_scalars", "residual"), ("x0_scalars", "x0"), ("bigram_rows", "bigram")]:
            if on(key):
                yield f"{p}{name}_scale", (1,)
        for name, out in [("q", d), ("k", kv), ("v", kv), ("o", d)]:
            yield f"{p}self_attn.{name}_proj.weight", (out, d)
        if on("value_embeddings") and (n - 1 - layer) % 2 == 0:
            yield f"{p}self_attn.value_embed.weight", (v, kv)
            yield f"{p}self_attn.value_gate.weight", (c["num_key_value_heads"], GATE_CHANNELS)
        if on("mlp", "swiglu") == "swiglu":
            yield f"{p}mlp.gate_proj.weight", (f, d)
        yield f"{p}mlp.up_proj.weight", (f, d)
        yield f"{p}mlp.down_proj.weight", (d, f)
        if on("norm_weights", True):
            yield f"{p}input_layernorm.weight", (d,)
            yield f"{p}post_attention_layernorm.weight", (d,)
    if on("norm_weights", True):
        yield "model.norm.weight", (d,)
    if on("backout"):
        yield "model.backout_scale", (1,)
    if not c["tie_word_embeddings"]:
        yield "lm_head.weight", (v, d)


def parameters(c, seed):
    """Random values of every parameter, large enough that each matters."""
    torch.manual_seed(seed)
    values = {}
    for name, shape in shapes(c):
        std = 0.05 if len(shape) > 1 else 0.1
        if "bigram_embed" in name or "value_embed" in name:
            std = 0.3
        if "_gate." in name and "mlp" not in name:
            std = 0.5
        start = 1.0 if "norm" in name or "residual_scale" in name else 0.0
        start = 0.4 if name.endswith("_scale") and start == 0.0 else start
        values[name] = (start + std * torch.randn(shape)).requires_grad_()
    return values


def previous(x, own):
    """Rows of the previous tokens [B,T,..]; the first is zero, or its own."""
    first = x[:, :1] if own else torch.zeros_like(x[:, :1])
    return torch.cat((first, x[:, :-1]), 1)


class Model:
    """A model as a function of its parameters."""

    def __init__(self, config, values):
        self.c, self.p = config, values

    def norm(self, x, name=None):
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.c["rms_norm_eps"])
        return y * self.p[name] if name and name in self.p else y

    def linear(self, x, name):
        return x @ self.p[name].T

    def rotate(self, x):
        """Rotates the first channels of each head, all or half of them, half-split."""
        width = x.shape[-1] // 2 if self.c.get("key_offset") else x.shape[-1]
        frequencies = self.c["rope_theta"] ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angles = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * frequencies
        cos, sin = angles.cos().float()[:, None], angles.sin().float()[:, None]
        a, b, rest = x[..., : width // 2], x[..., width // 2 : width], x[..., width:]
        return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)

    def attention(self, x, ids, path):
        c, (n_batch, n_tokens) = self.c, ids.shape
        heads, kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
        split = lambda name, n: self.linear(x, f"{path}{name}_proj.weight").view(n_batch, n_tokens, n, -1)
        q, k, v = split("q", heads), split("k", kv_heads), split("v", kv_heads)
        if c.get("qk_norm"):
            q, k = self.norm(q) * c["qk_norm_gain"], self.norm(k) * c["qk_norm_gain"]
        q, k = self.rotate(q), self.rotate(k)
        if f"{path}value_embed.weight" in self.p:
            rows = self.p[f"{path}value_embed.weight"][ids].view(v.shape)
            gate = 3 * torch.sigmoid(self.linear(x[..., :GATE_CHANNELS], f"{path}value_gate.weight"))
            v = v + gate[..., None] * rows
        if c.get("key_offset"):
            half = k.shape[-1] // 2
            k = torch.cat((k[..., :half], previous(k, True)[..., half:]), -1)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.linear(y.transpose(1, 2).reshape(n_batch, n_tokens, -1), f"{path}o_proj.weight")

    def mlp(self, x, path):
        up = self.linear(x, f"{path}up_proj.weight")
        if self.c.get("mlp", "swiglu") == "swiglu":
            return self.linear(F.silu(self.linear(x, f"{path}gate_proj.weight")) * up, f"{path}down_proj.weight")
        return self.linear(F.relu(up) ** 2, f"{path}down_proj.weight")

    def embedded(self, ids):
        x = self.p["model.embed_tokens.weight"][ids]
        if self.c.get("embedding_norm"):
            x = self.norm(x)
        if self.c.get("smear"):
            gate = torch.sigmoid(self.linear(x[..., :GATE_CHANNELS], "model.smear_gate.weight"))
            x = x + self.p["model.smear_scale"] * gate * previous(x, False)
        return x

    def bigrams(self, ids):
        """Rows for pairs of tokens; the first token of a text has the last row."""
        rows = self.c["bigram_rows"]
        index = ((36313 * ids) ^ (27191 * previous(ids, True))) % (rows - 1)
        index[:, 0] = rows - 1
        return self.p["model.bigram_embed.weight"][index]

    def logits(self, ids):
        n = self.c["num_hidden_layers"]
        x0 = x = self.embedded(ids)
        bigrams = self.bigrams(ids) if self.c.get("bigram_rows") else 0.0
        factor = lambda name, default: self.p.get(name, default)
        for layer in range(n):
            path = f"model.layers.{layer}."
            x = factor(path + "residual_scale", 1.0) * x + factor(path + "x0_scale", 0.0) * x0
            x = x + factor(path + "bigram_scale", 0.0) * bigrams
            if layer == min(n // 2 + 1, n - 1):
                middle = x
            x = x + self.attention(self.norm(x, path + "input_layernorm.weight"), ids, path + "self_attn.")
            x = x + self.mlp(self.norm(x, path + "post_attention_layernorm.weight"), path + "mlp.")
        if self.c.get("backout"):
            x = x - self.p["model.backout_scale"] * middle
        head = "model.embed_tokens.weight" if self.c["tie_word_embeddings"] else "lm_head.weight"
        logits = self.linear(self.norm(x, "model.norm.weight"), head)
        cap = self.c.get("final_logit_softcapping")
        return cap * torch.tanh(logits / cap) if cap else logits


def golden(model):
    """Everything golden.safetensors holds."""
    ids, labels = batch("lehr", model.c["vocab_size"])
    logits = model.logits(ids)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    loss.backward()
    text = ids[:1, :10]
    with torch.no_grad():
        for _ in range(20):
            text = torch.cat((text, model.logits(text)[:, -1:].argmax(-1)), 1)
    out = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids), "logits": logits, "loss": loss}
    out |= {"greedy": text[0]} | {f"grad.{name}": value.grad for name, value in model.p.items()}
    return {key: tensor.detach().clone().contiguous() for key, tensor in out.items()}


def main():
    torch.set_num_threads(1)
    out, wanted = Path(sys.argv[1]), sys.argv[2:]
    for index, (name, config) in enumerate(MODELS.items()):
        if wanted and name not in wanted:
            continue
        model = Model(config, parameters(config, SEED + index))
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        tensors = golden(model)
        save_file(tensors, folder / "golden.safetensors", {"torch": torch.__version__, "seed": str(SEED + index)})
        weights = {name: value.detach().clone() for name, value in model.p.items()}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        n_values = sum(value.numel() for value in weights.values())
        print(f"{name:20} loss {tensors['loss'].item():.6f} {n_values} values")


if __name__ == "__main__":
    main()
