"""Computes tiny models with random weights with Hugging Face transformers, in f32 on the CPU.

    python tools/golden/models.py OUT_DIR [FAMILY...]

writes one folder per family: config.json and model.safetensors as the family's checkpoints are published, and
golden.safetensors with what the reference computes. README.md beside this file describes the keys.
"""

import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

SEED = 4200
BATCH, TOKENS = 3, 24
# The first three ids are special: beginning, end, padding or mask.
FIRST_ID = 3
IGNORED = -100


def configs():
    """Name and configuration of every family. The position in the list is part of the seed: append only."""
    T = transformers
    yield (
        "gpt2",
        T.GPT2Config(
            vocab_size=160,
            n_positions=64,
            n_embd=48,
            n_layer=3,
            n_head=4,
            n_inner=None,
            attn_pdrop=0,
            embd_pdrop=0,
            resid_pdrop=0,
            bos_token_id=0,
            eos_token_id=1,
        ),
    )
    yield (
        "llama",
        T.LlamaConfig(
            vocab_size=160,
            hidden_size=64,
            intermediate_size=112,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            rope_theta=10000.0,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=1,
            rms_norm_eps=1e-5,
        ),
    )
    yield (
        "llama-rope-scaled",
        T.LlamaConfig(
            vocab_size=160,
            hidden_size=64,
            intermediate_size=112,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            rope_theta=500000.0,
            rope_scaling={
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
            bos_token_id=0,
            eos_token_id=1,
            tie_word_embeddings=True,
        ),
    )
    yield (
        "mistral",
        T.MistralConfig(
            vocab_size=160,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            sliding_window=8,
            head_dim=None,
            max_position_embeddings=128,
            bos_token_id=0,
            eos_token_id=1,
        ),
    )
    yield (
        "qwen2",
        T.Qwen2Config(
            vocab_size=160,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
        ),
    )
    yield (
        "qwen3",
        T.Qwen3Config(
            vocab_size=160,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=24,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
        ),
    )
    yield (
        "gemma3",
        T.Gemma3TextConfig(
            vocab_size=160,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=24,
            query_pre_attn_scalar=24,
            sliding_window=8,
            max_position_embeddings=128,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        ),
    )
    yield (
        "glm",
        T.GlmConfig(
            vocab_size=160,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            attention_bias=True,
            partial_rotary_factor=0.5,
            max_position_embeddings=128,
            pad_token_id=2,
            bos_token_id=0,
            eos_token_id=1,
        ),
    )
    yield (
        "glm4",
        T.Glm4Config(
            vocab_size=160,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            attention_bias=True,
            partial_rotary_factor=0.5,
            max_position_embeddings=128,
            pad_token_id=2,
            bos_token_id=0,
            eos_token_id=1,
        ),
    )
    yield (
        "bert",
        T.BertConfig(
            vocab_size=160,
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=96,
            max_position_embeddings=64,
            hidden_dropout_prob=0,
            attention_probs_dropout_prob=0,
        ),
    )
    # What the families' smallest models leave out: odd numbers of heads, biases, windows in some blocks, stretched RoPE.
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
    yield (
        "llama-yarn-biases",
        T.LlamaConfig(
            vocab_size=97,
            hidden_size=40,
            intermediate_size=72,
            num_hidden_layers=2,
            num_attention_heads=5,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=128,
            rope_parameters=yarn | {"truncate": False, "beta_fast": 16, "mscale": 0.7, "mscale_all_dim": 1.4},
            attention_bias=True,
            mlp_bias=True,
            hidden_act="gelu_pytorch_tanh",
            bos_token_id=0,
            eos_token_id=1,
        ),
    )
    yield (
        "qwen3-windows",
        T.Qwen3Config(
            vocab_size=97,
            hidden_size=36,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=3,
            head_dim=10,
            max_position_embeddings=128,
            rope_parameters=yarn | {"attention_factor": 1.3},
            attention_bias=True,
            use_sliding_window=True,
            sliding_window=5,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            bos_token_id=0,
            eos_token_id=1,
        ),
    )
    yield (
        "gemma3-mixed",
        T.Gemma3TextConfig(
            vocab_size=97,
            hidden_size=33,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=3,
            num_key_value_heads=3,
            head_dim=16,
            query_pre_attn_scalar=20,
            sliding_window=6,
            layer_types=["full_attention", "sliding_attention", "full_attention"],
            rope_parameters={
                "full_attention": yarn,
                "sliding_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.5},
            },
            attention_bias=True,
            final_logit_softcapping=3.0,
            tie_word_embeddings=False,
            max_position_embeddings=128,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        ),
    )


    yield (
        "nanochat",
        T.NanoChatConfig(
            vocab_size=160,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            final_logit_softcapping=1.5,
            attention_bias=True,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        ),
    )


def build(config, name, seed):
    """A model in evaluation mode whose weights are moved off their symmetric start, so that every term matters."""
    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    auto = transformers.AutoModelForMaskedLM if name == "bert" else transformers.AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.05 if parameter.dim() > 1 else 0.1))
    return model


def batch(name, vocabulary):
    """Tokens and labels: prompts and holes carry no loss; bert predicts every fourth token, which it sees as 2."""
    ids = torch.randint(FIRST_ID, vocabulary, (BATCH, TOKENS))
    labels = ids.clone()
    if name == "bert":
        labels = torch.full_like(ids, IGNORED)
        labels[:, 3::4] = ids[:, 3::4]
        ids[:, 3::4] = 2
    else:
        labels[:, :5] = IGNORED
        labels[1, 11:13] = IGNORED
    return ids, labels


@torch.no_grad()
def greedy(model, ids):
    """`ids` and 20 more tokens, without a cache and without a stop."""
    for _ in range(20):
        ids = torch.cat((ids, model(input_ids=ids).logits[:, -1:].argmax(-1)), 1)
    return ids


def compute(model, name):
    """Everything golden.safetensors holds."""
    ids, labels = batch(name, model.config.vocab_size)
    mask = torch.ones_like(ids)
    out = model(input_ids=ids, attention_mask=mask, labels=labels)
    out.loss.backward()
    golden = {"input_ids": ids, "labels": labels, "attention_mask": mask, "logits": out.logits, "loss": out.loss}
    if name == "bert":
        encoded = model.bert(input_ids=ids, attention_mask=mask, token_type_ids=torch.zeros_like(ids))
        golden["hidden"] = encoded.last_hidden_state
    else:
        golden["greedy"] = greedy(model, ids[:1, :10])[0]
    golden |= {f"grad.{n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {key: tensor.detach().clone().contiguous() for key, tensor in golden.items()}


def main():
    torch.set_num_threads(1)
    out, wanted = Path(sys.argv[1]), sys.argv[2:]
    for index, (name, config) in enumerate(configs()):
        if wanted and name not in wanted:
            continue
        model = build(config, name, SEED + index)
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        golden = compute(model, name)
        metadata = {"torch": torch.__version__, "transformers": transformers.__version__, "seed": str(SEED + index)}
        save_file(golden, folder / "golden.safetensors", metadata)
        model.save_pretrained(folder)
        n_values = sum(p.numel() for p in model.parameters())
        print(f"{name:20} loss {golden['loss'].item():.6f} {n_values} values")


if __name__ == "__main__":
    main()
