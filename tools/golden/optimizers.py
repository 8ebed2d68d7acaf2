"""Ten steps of Muon, and of AdamW with groups and cautious decay, in plain PyTorch.

    python tools/golden/optimizers.py [OUT_DIR]

writes OUT_DIR/muon.safetensors and OUT_DIR/adamw_groups.safetensors (default crates/lehr-tensor/tests/golden). Both are
computed in f64 from f32 numbers and rounded once. The keys are described in README.md beside this file. The formulas are
those of the papers named in crates/lehr-tensor/src/inplace/muon/mod.rs.
"""

import json
import sys
from pathlib import Path

import torch

from ops import DEFAULT_OUT, SEED, Draw, f32
from safetensors_file import save

# Polar Express with five steps and a safety factor of 1.02: a, b, c of each.
STEPS = [
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]


def orthogonal(x):
    """The orthogonal factor of x, whose norm is below 1."""
    for a, b, c in STEPS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon:
    """Muon for one linear map [outputs, inputs]."""

    def __init__(self, weight):
        self.weight, self.momentum = weight, torch.zeros_like(weight)
        m, n = weight.shape
        self.dim = 1 if m >= n else 0
        self.second = torch.zeros_like(weight.sum(self.dim, keepdim=True))

    def step(self, grad, lr, momentum, beta2, weight_decay):
        w, (m, n) = self.weight, self.weight.shape
        self.momentum = momentum * self.momentum + (1 - momentum) * grad
        u = momentum * self.momentum + (1 - momentum) * grad
        # All rows get the mean norm.
        mean = u.norm() / m**0.5
        u = u * mean / u.norm(dim=1, keepdim=True).clamp_min(1e-6)
        x = orthogonal(u / (1.01 * u.norm() + 1e-6))
        x = x * min(m, n) ** 0.5 / x.norm().clamp_min(1e-6)
        # Rows or columns of equal mean square, without changing the norm.
        self.second = beta2 * self.second + (1 - beta2) * x.square().mean(self.dim, keepdim=True)
        even = x / self.second.clamp_min(1e-10).sqrt()
        x = even * x.norm() / even.norm().clamp_min(1e-10)
        lr = lr * max(1.0, m / n) ** 0.5
        decays = (x * w >= 0).to(w.dtype)
        self.weight = w - lr * x - lr * weight_decay * w * decays


# Each case: the outputs of each map in the matrix, and the inputs.
MUON_CASES = {
    "tall": ([20], 8),
    "wide": ([8], 20),
    "square": ([12], 12),
    "qkv": ([8, 8, 8], 8),
    "grouped": ([8, 4, 4], 8),
}


def write_muon(out, n_steps=10):
    # The momentum rises for five steps; the rate changes each step.
    momentum = [f32(0.85 + 0.10 * min((step - 1) / 5, 1)) for step in range(1, n_steps + 1)]
    lr = [f32(0.02 * step / n_steps) for step in range(1, n_steps + 1)]
    settings = {"beta2": f32(0.95), "weight_decay": f32(0.3)}
    tensors, errors = {}, {}
    for name, (parts, n_in) in MUON_CASES.items():
        draw = Draw(f"muon {name}")
        start = draw.normal(sum(parts), n_in, std=0.3)
        tensors[f"{name}.p0"] = start
        exact = [Muon(part.double()) for part in start.split(parts)]
        plain = [Muon(part) for part in start.split(parts)]
        for step in range(1, n_steps + 1):
            grad = draw.normal(sum(parts), n_in) * 10.0 ** (step % 4 - 2)
            if name == "square":
                # A row that no gradient reaches.
                grad[3] = 0
            tensors[f"{name}.g{step}"] = grad
            for maps, dtype in ((exact, torch.float64), (plain, torch.float32)):
                for one, part in zip(maps, grad.split(parts)):
                    one.step(part.to(dtype), lr[step - 1], momentum[step - 1], **settings)
            if step in (1, 2, 5, 10):
                found = torch.cat([one.weight for one in exact])
                tensors[f"{name}.p{step}"] = found.float()
                in_f32 = torch.cat([one.weight for one in plain]).double()
                errors[f"{name}.p{step}"] = float((in_f32 - found).abs().max())
        tensors[f"{name}.momentum"] = torch.cat([one.momentum for one in exact]).float()
        tensors[f"{name}.second"] = torch.cat([one.second.flatten() for one in exact]).float()
    settings |= {"steps": n_steps, "lr": lr, "momentum": momentum, "parts": {k: v[0] for k, v in MUON_CASES.items()}}
    metadata = {"torch": torch.__version__, "seed": str(SEED), "settings": json.dumps(settings), "f32": json.dumps(errors)}
    save(out / "muon.safetensors", tensors, metadata)


ADAMW_GROUPS = {
    "matrices": {"shape": (5, 7), "lr": 0.01, "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1},
    "embeddings": {"shape": (6, 4), "lr": 0.1, "beta1": 0.8, "beta2": 0.995, "weight_decay": 0.02},
    "head": {"shape": (4, 6), "lr": 0.004, "beta1": 0.8, "beta2": 0.96, "weight_decay": 0.3},
    "scalars": {"shape": (9,), "lr": 0.05, "beta1": 0.96, "beta2": 0.95, "weight_decay": 0.05},
}


def write_adamw(out, n_steps=10):
    tensors, eps = {}, f32(1e-10)
    for name, group in ADAMW_GROUPS.items():
        draw = Draw(f"adamw group {name}")
        lr, beta1, beta2, decay = (f32(group[key]) for key in ("lr", "beta1", "beta2", "weight_decay"))
        start = draw.normal(*group["shape"])
        tensors[f"{name}.p0"] = start
        p, m, v = start.double(), 0.0, 0.0
        for step in range(1, n_steps + 1):
            grad = draw.normal(*group["shape"]) * 10.0 ** (step % 6 - 4)
            tensors[f"{name}.g{step}"] = grad
            g = grad.double()
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g * g
            update = m / (1 - beta1**step) / ((v / (1 - beta2**step)).sqrt() + eps)
            decays = (update * p >= 0).double()
            p = p - lr * decay * p * decays - lr * update
            tensors[f"{name}.p{step}"] = p.float()
    settings = {"steps": n_steps, "eps": eps, "groups": ADAMW_GROUPS}
    metadata = {"torch": torch.__version__, "seed": str(SEED), "settings": json.dumps(settings)}
    save(out / "adamw_groups.safetensors", tensors, metadata)


def main():
    torch.set_num_threads(1)
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_OUT
    out.mkdir(parents=True, exist_ok=True)
    write_muon(out)
    write_adamw(out)


if __name__ == "__main__":
    main()
