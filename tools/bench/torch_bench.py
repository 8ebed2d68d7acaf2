"""Times training steps of a GPT-2-like or Llama-like model in PyTorch on the CPU; prints one JSON line.

    python tools/bench/torch_bench.py --config tiny --arch gpt --mode compile --steps 10 --threads 2

A step is forward, cross-entropy, backward, AdamW and clearing the gradients; no dropout, tied embeddings. `lehr bench step --json`
does the same work and prints a line with the same keys; `side_by_side.py` runs both.

Floating-point operations of a step, as reported: 6 · (numbers in matrices, the tied one once) · tokens, and
6 · layers · B · T² · D for causal attention (two products of 2 · T² · D, halved by causality, times 3 for forward and backward).
"""

import argparse
import json
import os
import resource
import statistics
import sys
import time

# layers, width, heads, vocabulary, tokens, batch
CONFIGS = {
    "tiny": (4, 256, 4, 8192, 256, 8),
    "small": (6, 384, 6, 16384, 512, 4),
    "gpt2": (12, 768, 12, 50304, 1024, 1),
    "gpt2_64": (12, 768, 12, 50304, 64, 4),
}
MODES = ["eager", "compile", "bf16", "compile_bf16"]
N_BATCHES = 8


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="small", choices=CONFIGS)
    parser.add_argument("--arch", default="gpt", choices=["gpt", "llama"])
    parser.add_argument("--mode", default="eager", choices=MODES)
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them, the first of which is reported alone")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--kv-heads", type=int, default=0, help="llama: key-value heads (default: a third of the heads, or half)"
    )
    parser.add_argument("--fused", type=int, default=1, help="1 = AdamW(fused=True)")
    parser.add_argument("--clip", type=float, default=0.0, help="largest norm of the gradient (0 = not clipped)")
    parser.add_argument("--profile", action="store_true", help="print PyTorch's table of operations to standard error")
    parser.add_argument("--fwd-only", action="store_true", help="forward and loss only")
    return parser.parse_args()


args = arguments()
# Read by OpenMP when torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

N_LAYERS, D, N_HEADS, V, T, B = CONFIGS[args.config]
E = D // N_HEADS
N_KV_HEADS = args.kv_heads or (N_HEADS // 3 if N_HEADS % 3 == 0 else N_HEADS // 2)
# The hidden width of SwiGLU: 8/3 · D, rounded up to a multiple of 64.
FF = (int(8 * D / 3) + 63) // 64 * 64


class GptBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln1 = nn.LayerNorm(D)
        self.qkv = nn.Linear(D, 3 * D)
        self.proj = nn.Linear(D, D)
        self.ln2 = nn.LayerNorm(D)
        self.fc = nn.Linear(D, 4 * D)
        self.fc2 = nn.Linear(4 * D, D)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = self.qkv(self.ln1(x)).split(D, dim=2)
        q, k, v = (z.view(b, t, N_HEADS, E).transpose(1, 2) for z in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(b, t, D))
        return x + self.fc2(F.gelu(self.fc(self.ln2(x)), approximate="tanh"))


class RmsNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(D))

    def forward(self, x):
        return F.rms_norm(x, (D,), self.weight, 1e-5)


def rotate(x, cos, sin):
    x1, x2 = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-x2, x1), dim=-1) * sin


class LlamaBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = RmsNorm()
        self.q = nn.Linear(D, D, bias=False)
        self.k = nn.Linear(D, N_KV_HEADS * E, bias=False)
        self.v = nn.Linear(D, N_KV_HEADS * E, bias=False)
        self.o = nn.Linear(D, D, bias=False)
        self.norm2 = RmsNorm()
        self.gate = nn.Linear(D, FF, bias=False)
        self.up = nn.Linear(D, FF, bias=False)
        self.down = nn.Linear(FF, D, bias=False)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        h = self.norm1(x)
        q = self.q(h).view(b, t, N_HEADS, E).transpose(1, 2)
        k = self.k(h).view(b, t, N_KV_HEADS, E).transpose(1, 2)
        v = self.v(h).view(b, t, N_KV_HEADS, E).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (z.repeat_interleave(N_HEADS // N_KV_HEADS, dim=1) for z in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, D))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(V, D)
        if args.arch == "gpt":
            self.wpe = nn.Embedding(T, D)
            self.blocks = nn.ModuleList(GptBlock() for _ in range(N_LAYERS))
            self.norm = nn.LayerNorm(D)
        else:
            self.blocks = nn.ModuleList(LlamaBlock() for _ in range(N_LAYERS))
            self.norm = RmsNorm()
            frequency = 1.0 / (10000 ** (torch.arange(0, E, 2).float() / E))
            angle = torch.outer(torch.arange(T).float(), frequency)
            angle = torch.cat((angle, angle), -1)
            self.register_buffer("cos", angle.cos())
            self.register_buffer("sin", angle.sin())
        self.head = nn.Linear(D, V, bias=False)
        self.head.weight = self.wte.weight
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, 0, 0.02)

    def forward(self, ids, targets):
        x = self.wte(ids)
        if args.arch == "gpt":
            x = x + self.wpe(torch.arange(ids.shape[1]))
            for block in self.blocks:
                x = block(x)
        else:
            cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
            for block in self.blocks:
                x = block(x, cos, sin)
        return F.cross_entropy(self.head(self.norm(x)).float().view(-1, V), targets.view(-1))


def flop_per_step(model):
    named = model.named_parameters()
    n_matrix = sum(p.numel() for name, p in named if p.dim() > 1 and "wpe" not in name)
    flop = 6 * n_matrix * B * T + 6 * N_LAYERS * B * T * T * D
    return flop / 3 if args.fwd_only else flop


def make_step(model):
    """A function of the step's number that does the step and returns the loss."""
    settings = dict(lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=bool(args.fused))
    optimizer = torch.optim.AdamW(model.parameters(), **settings)
    run = torch.compile(model) if "compile" in args.mode else model
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(0, V, (N_BATCHES, B, T + 1), generator=generator)

    def step(i):
        batch = data[i % N_BATCHES]
        ids, targets = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled="bf16" in args.mode):
            loss = run(ids, targets)
        if args.fwd_only:
            return loss.item()
        loss.backward()
        if args.clip > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def profile(step):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        step(0)
    table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25)
    print(table, file=sys.stderr)


def main():
    torch.set_num_threads(args.threads)
    torch.manual_seed(1337)
    model = Model()
    step = make_step(model)
    start = time.perf_counter()
    loss_first = loss_last = step(0)
    first_step_s = time.perf_counter() - start
    for i in range(1, args.warmup):
        step(i)
    times = []
    wall, cpu = time.perf_counter(), time.process_time()
    for i in range(args.steps):
        start = time.perf_counter()
        loss_last = step(i)
        times.append(time.perf_counter() - start)
    # Below the number of threads, something else was using the machine.
    busy_cores = (time.process_time() - cpu) / (time.perf_counter() - wall)
    if args.profile:
        profile(step)
    median = statistics.median(times)
    flop = flop_per_step(model)
    line = {
        "peer": "torch",
        "version": torch.__version__,
        "config": args.config,
        "arch": args.arch,
        "mode": args.mode,
        "threads": args.threads,
        "fused": args.fused,
        "fwd_only": args.fwd_only,
        "params": sum(p.numel() for p in model.parameters()),
        "B": B,
        "T": T,
        "steps": args.steps,
        "first_step_s": round(first_step_s, 2),
        "ms_median": round(median * 1e3, 1),
        "ms_min": round(min(times) * 1e3, 1),
        "ms_max": round(max(times) * 1e3, 1),
        "tok_s": round(B * T / median, 1),
        "gflops": round(flop / median / 1e9, 1),
        "flop_per_step": flop,
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 0),
        "busy_cores": round(busy_cores, 2),
        "loss_first": round(loss_first, 4),
        "loss_last": round(loss_last, 4),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
