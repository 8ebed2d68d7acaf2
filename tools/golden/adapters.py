"""Adapts golden models with PEFT, in f32 on the CPU.

    python tools/golden/adapters.py crates/lehr-model/tests/golden crates/lehr-model/tests/peft
    python tools/golden/adapters.py check crates/lehr-model/tests/golden crates/lehr-model/tests/peft target/tmp/peft

The first form writes one folder per case: adapter_config.json and adapter_model.safetensors as PEFT saves them, and golden.safetensors
with what PEFT computes. The second opens the adapters that `cargo test -p lehr-model --test peft` has written into the last folder with
PEFT, and compares its logits with those of the first.
"""

import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

SEED = 77
# Largest difference of a logit from another order of additions.
LIMIT = 1e-5

# Base and settings of each case.
CASES = {
    "llama": ("llama", dict(r=4, lora_alpha=8, target_modules="all-linear")),
    "llama-patterns": (
        "llama",
        dict(
            r=4,
            lora_alpha=6,
            use_rslora=True,
            target_modules=["q_proj", "down_proj", "lm_head"],
            rank_pattern={"layers.1.self_attn.q_proj": 2, "^model.layers.2.mlp.down_proj": 3},
            alpha_pattern={"mlp.down_proj": 3, "lm_head": 1.5},
        ),
    ),
    "gpt2": ("gpt2", dict(r=3, lora_alpha=9, target_modules=["c_attn", "c_fc", "c_proj"], fan_in_fan_out=True)),
    "qwen3": ("qwen3", dict(r=2, lora_alpha=2, target_modules=["v_proj", "gate_proj"], layers_to_transform=[0])),
    "llama-dora": ("llama", dict(r=3, lora_alpha=6, use_dora=True, target_modules="all-linear")),
    "gpt2-dora": (
        "gpt2",
        dict(r=2, lora_alpha=2, use_dora=True, use_rslora=True, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True),
    ),
}


def base_of(goldens, base):
    model = AutoModelForCausalLM.from_pretrained(goldens / base, dtype=torch.float32, attn_implementation="eager")
    golden = load_file(goldens / base / "golden.safetensors")
    return model.eval(), golden["input_ids"], golden["labels"]


def write(goldens, out):
    for name, (base, settings) in CASES.items():
        model, ids, labels = base_of(goldens, base)
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
        torch.manual_seed(SEED)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for name_of, p in trained.items():
                noise = 0.1 * torch.randn_like(p)
                # Lengths stay near those of the rows.
                p.copy_(p * (1 + noise) if "magnitude" in name_of else noise)
        result = model(input_ids=ids, labels=labels)
        result.loss.backward()
        # PEFT names parameters after the adapter, which its files do not.
        names = {n: n.replace(".default", "").replace("magnitude_vector.weight", "magnitude_vector") for n in trained}
        grads = {f"grad.{names[n]}": p.grad for n, p in trained.items()}
        folder = out / name
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        golden = {"input_ids": ids, "labels": labels, "logits": result.logits.detach(), "loss": result.loss.detach()} | grads
        save_file({n: t.contiguous() for n, t in golden.items()}, folder / "golden.safetensors", metadata={"base": base})
        print(f"{name}: {len(trained)} tensors, loss {result.loss.item():.4f}")


def check(goldens, out, written):
    for name, (base, _) in CASES.items():
        model, ids, _ = base_of(goldens, base)
        model = PeftModel.from_pretrained(model, written / name).eval()
        with torch.no_grad():
            logits = model(input_ids=ids).logits
        error = (logits - load_file(out / name / "golden.safetensors")["logits"]).abs().max().item()
        print(f"{name}: {error:.1e}")
        if error > LIMIT:
            sys.exit(f"{name}: what lehr has written computes something else")


if __name__ == "__main__":
    if sys.argv[1] == "check":
        check(*map(Path, sys.argv[2:5]))
    else:
        write(*map(Path, sys.argv[1:3]))
