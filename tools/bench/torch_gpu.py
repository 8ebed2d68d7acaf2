"""Times training steps of a GPT-2-like or Llama-like model in PyTorch on a GPU; prints one JSON line.

    python tools/bench/torch_gpu.py --config gpt2 --arch gpt --batch 64 --steps 20 --warmup 5 --json
    python tools/bench/torch_gpu.py --config tiny --arch llama --device cpu --dtype f32 --mode eager

A step is forward, cross-entropy, backward, AdamW and clearing the gradients; no dropout, tied embeddings, eight fixed batches of random
ids in turn. `lehr bench step --device cuda --json` does the same work and prints a line with the same keys; `gpu_check.py` runs both.

PyTorch is used as somebody would who wants it fast: torch.compile; weights and AdamW's state in f32, products in bf16 by autocast, and
the sum that runs through the blocks in bf16 too; the fused AdamW; nothing waits for the GPU between steps. Two choices depend on the
card and the shape, so they are measured before anything is reported, and the faster one is taken:

- attention: FlashAttention or cuDNN's, each alone, forward and backward;
- the loss: over all logits at once inside the compiled graph, or in chunks of rows that compute their gradients at once and never
  hold all logits (`--loss full`, `--loss chunked`).

Floating-point operations of a step, as reported: 6 · (numbers in matrices, the tied one once) · tokens, and
6 · layers · B · T² · heads · head width for causal attention. `mfu` is their share of 989 TFLOP/s (dense bf16) on an H100 or H200.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

# layers, width, heads, vocabulary, tokens, batch: those of torch_bench.py
CONFIGS = {
    "tiny": (4, 256, 4, 8192, 256, 8),
    "small": (6, 384, 6, 16384, 512, 4),
    "gpt2": (12, 768, 12, 50304, 1024, 1),
    "llama_1b": (16, 2048, 32, 128256, 4096, 4),
}
N_BATCHES = 8
# Rows of a chunk of the loss: enough for the full speed of a product, and far fewer than a batch has.
CHUNK_ROWS = 8192
# Steps that decide which loss is faster, after two that compile and warm up.
TRIAL_STEPS = 3
PEAK_BF16 = {"H100": 989e12, "H200": 989e12}


@dataclass
class Shape:
    arch: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    ff: int
    vocab: int
    theta: float
    t: int
    b: int

    @property
    def head_width(self):
        return self.width // self.heads


def shape_of(args):
    layers, width, heads, vocab, t, b = CONFIGS[args.config]
    if args.config == "llama_1b":
        kv_heads, ff, theta = 8, 8192, 500_000.0
    else:
        kv_heads = heads // 3 if heads % 3 == 0 else heads // 2
        # The hidden width of SwiGLU: 8/3 · width, rounded up to a multiple of 64.
        ff, theta = (8 * width // 3 + 63) // 64 * 64, 10_000.0
    t, b = args.length or t, args.batch or b
    return Shape(args.arch, layers, width, heads, kv_heads, ff, vocab, theta, t, b)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="gpt2", choices=CONFIGS)
    parser.add_argument("--arch", default="gpt", choices=["gpt", "llama"])
    parser.add_argument("--batch", type=int, default=0, help="rows (default: the configuration's)")
    parser.add_argument("--length", type=int, default=0, help="tokens of a row (default: the configuration's)")
    parser.add_argument("--steps", type=int, default=20, help="timed steps")
    parser.add_argument("--warmup", type=int, default=5, help="steps before them")
    parser.add_argument("--mode", default="compile", choices=["compile", "eager"])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "f32"], help="of products and activations")
    parser.add_argument("--loss", default="best", choices=["best", "full", "chunked"])
    parser.add_argument("--attention", default="best", choices=["best", "flash", "cudnn"], help="on a GPU")
    parser.add_argument("--json", action="store_true", help="one JSON line (it is always one)")
    args = parser.parse_args()
    if args.steps < 1 or args.warmup < 0:
        parser.error("--steps is at least 1 and --warmup at least 0")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU; `--device cpu` tries the code without one")
    return args


class GptBlock(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.s = s
        self.ln1 = nn.LayerNorm(s.width)
        self.qkv = nn.Linear(s.width, 3 * s.width)
        self.proj = nn.Linear(s.width, s.width)
        self.ln2 = nn.LayerNorm(s.width)
        self.fc = nn.Linear(s.width, 4 * s.width)
        self.fc2 = nn.Linear(4 * s.width, s.width)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(self.ln1(x)).split(d, dim=2)
        q, k, v = (z.view(b, t, self.s.heads, self.s.head_width).transpose(1, 2) for z in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(b, t, d))
        return x + self.fc2(F.gelu(self.fc(self.ln2(x)), approximate="tanh"))


class RmsNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        # Statistics in f32, whatever x is; compiled, this is one kernel.
        return F.rms_norm(x.float(), self.weight.shape, self.weight, 1e-5).to(x.dtype)


def rotate(x, cos, sin):
    x1, x2 = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-x2, x1), dim=-1) * sin


class LlamaBlock(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.s = s
        kv_width = s.kv_heads * s.head_width
        self.norm1 = RmsNorm(s.width)
        self.q = nn.Linear(s.width, s.width, bias=False)
        self.k = nn.Linear(s.width, kv_width, bias=False)
        self.v = nn.Linear(s.width, kv_width, bias=False)
        self.o = nn.Linear(s.width, s.width, bias=False)
        self.norm2 = RmsNorm(s.width)
        self.gate = nn.Linear(s.width, s.ff, bias=False)
        self.up = nn.Linear(s.width, s.ff, bias=False)
        self.down = nn.Linear(s.ff, s.width, bias=False)

    def forward(self, x, cos, sin):
        b, t, d = x.shape
        h = self.norm1(x)
        q, k, v = (
            linear(h).view(b, t, heads, self.s.head_width).transpose(1, 2)
            for linear, heads in ((self.q, self.s.heads), (self.k, self.s.kv_heads), (self.v, self.s.kv_heads))
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.s.kv_heads != self.s.heads)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, d))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Model(nn.Module):
    """The network up to the last norm; the head is the embedding."""

    def __init__(self, s, dtype):
        super().__init__()
        self.s, self.dtype = s, dtype
        self.wte = nn.Embedding(s.vocab, s.width)
        if s.arch == "gpt":
            self.wpe = nn.Embedding(s.t, s.width)
            self.blocks = nn.ModuleList(GptBlock(s) for _ in range(s.layers))
            self.norm = nn.LayerNorm(s.width)
        else:
            self.blocks = nn.ModuleList(LlamaBlock(s) for _ in range(s.layers))
            self.norm = RmsNorm(s.width)
            e = s.head_width
            frequency = 1.0 / (s.theta ** (torch.arange(0, e, 2).float() / e))
            angle = torch.outer(torch.arange(s.t).float(), frequency)
            angle = torch.cat((angle, angle), -1)
            self.register_buffer("cos", angle.cos().to(dtype))
            self.register_buffer("sin", angle.sin().to(dtype))

    def reset(self):
        """The same first weights on every call."""
        torch.manual_seed(1337)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.02)
                else:
                    parameter.fill_(0.0 if name.endswith("bias") else 1.0)

    def forward(self, ids):
        x = self.wte(ids)
        if self.s.arch == "gpt":
            x = (x + self.wpe(torch.arange(ids.shape[1], device=ids.device))).to(self.dtype)
            for block in self.blocks:
                x = block(x)
        else:
            x = x.to(self.dtype)
            for block in self.blocks:
                x = block(x, self.cos, self.sin)
        return self.norm(x).to(self.dtype).view(-1, self.s.width)


def chunk_gradient(logits, targets, n_rows):
    """The summed loss of some rows, and the gradient of the mean over `n_rows` with respect to their logits."""
    z = logits.float()
    lse = z.logsumexp(-1)
    loss = (lse - z.gather(1, targets[:, None])[:, 0]).sum()
    is_target = torch.arange(z.shape[1], device=z.device) == targets[:, None]
    gradient = ((z - lse[:, None]).exp() - is_target.float()) / n_rows
    return loss, gradient.to(logits.dtype)


class ChunkedLoss(torch.autograd.Function):
    """Mean cross-entropy of `x @ weight.T` with the logits of only a chunk of rows in memory: gradients are made in the forward pass."""

    @staticmethod
    def forward(ctx, x, weight, targets, gradient_of):
        n_rows = x.shape[0]
        w = weight.to(x.dtype)
        dx, dw = torch.empty_like(x), torch.zeros_like(weight)
        loss = torch.zeros((), device=x.device)
        for start in range(0, n_rows, CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            part, gradient = gradient_of(x[rows] @ w.t(), targets[rows], n_rows)
            loss += part
            torch.mm(gradient, w, out=dx[rows])
            dw += gradient.t() @ x[rows]
        ctx.save_for_backward(dx, dw)
        return loss / n_rows

    @staticmethod
    def backward(ctx, cotangent):
        # The loss is where backward starts, so its cotangent is one.
        dx, dw = ctx.saved_tensors
        return dx, dw, None, None


def loss_function(model, kind, compiled):
    """A function of ids and targets."""
    wrap = torch.compile if compiled else lambda function: function
    if kind == "full":

        def full(ids, targets):
            return F.cross_entropy(F.linear(model(ids), model.wte.weight).float(), targets.view(-1))

        return wrap(full)
    body, gradient_of = wrap(model), wrap(chunk_gradient)
    return lambda ids, targets: ChunkedLoss.apply(body(ids), model.wte.weight, targets.view(-1), gradient_of)


def flop_per_step(model):
    s = model.s
    n_matrix = sum(p.numel() for name, p in model.named_parameters() if p.dim() > 1 and "wpe" not in name)
    return 6 * n_matrix * s.b * s.t + 6 * s.layers * s.b * s.t * s.t * s.heads * s.head_width


def attention_kernels(s, dtype, choice):
    """The names of the attention kernels that work, the fastest first."""
    kernels = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    if choice != "best":
        return [choice]
    kv_heads = s.heads if s.arch == "gpt" else s.kv_heads
    of = lambda heads: torch.randn(s.b, heads, s.t, s.head_width, device="cuda", dtype=dtype, requires_grad=True)  # noqa: E731
    q, k, v = of(s.heads), of(kv_heads), of(kv_heads)
    took = {}
    for name, kernel in kernels.items():
        try:
            with sdpa_kernel([kernel]):

                def once():
                    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=kv_heads != s.heads)
                    torch.autograd.grad(y, (q, k, v), torch.ones_like(y))

                took[name] = statistics.median(timed(once, 10, 3, "cuda"))
        except Exception as error:
            print(f"attention by {name} does not work here: {error}", file=sys.stderr)
    print(f"attention alone, ms: {took}", file=sys.stderr)
    return sorted(took, key=took.get)


def use_attention(name):
    """Only this kernel, so that a shape it refuses is an error and not a slow detour."""
    torch.backends.cuda.enable_flash_sdp(name == "flash")
    torch.backends.cuda.enable_cudnn_sdp(name == "cudnn")
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_math_sdp(False)


def timed(work, n, n_before, device):
    """Milliseconds of each of `n` calls, after `n_before` that do not count."""
    for _ in range(n_before):
        work()
    if device == "cpu":
        marks = [time.perf_counter()]
        for _ in range(n):
            work()
            marks.append(time.perf_counter())
        return [1e3 * (b - a) for a, b in zip(marks, marks[1:])]
    # Events are recorded by the GPU itself; waiting once, at the end, leaves no gap between the calls.
    events = [torch.cuda.Event(enable_timing=True) for _ in range(n + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) for a, b in zip(events, events[1:])]


class Trainer:
    def __init__(self, args, s):
        self.args, self.s = args, s
        self.dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
        self.model = Model(s, self.dtype).to(args.device)
        generator = torch.Generator().manual_seed(0)
        data = torch.randint(0, s.vocab, (N_BATCHES, s.b, s.t + 1), generator=generator).to(args.device)
        self.batches = [(batch[:, :-1].contiguous(), batch[:, 1:].contiguous()) for batch in data]

    def start(self, loss_function):
        """From the first weights and a new optimizer."""
        self.run = loss_function
        # The old state goes before the new one comes.
        self.optimizer = None
        self.model.zero_grad(set_to_none=True)
        self.model.reset()
        settings = dict(lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), **settings)
        self.losses = []

    def step(self):
        ids, targets = self.batches[len(self.losses) % N_BATCHES]
        with torch.autocast(self.args.device, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            loss = self.run(ids, targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.losses.append(loss.detach())

    def choose(self):
        """The loss (and, if it must be, the attention) that is fastest: (its function, its name, attention)."""
        args = self.args
        kernels = attention_kernels(self.s, self.dtype, args.attention) if args.device == "cuda" else ["default"]
        kinds = ["full", "chunked"] if args.loss == "best" else [args.loss]
        for kernel in kernels:
            if args.device == "cuda":
                use_attention(kernel)
            found = []
            for kind in kinds:
                try:
                    run = loss_function(self.model, kind, args.mode == "compile")
                    self.start(run)
                    n = TRIAL_STEPS if len(kinds) > 1 else 1
                    found.append((statistics.median(timed(self.step, n, 2, args.device)), kind, run))
                    print(f"attention {kernel}, loss {kind}: {found[-1][0]:.1f} ms", file=sys.stderr)
                except Exception as error:
                    # Out of memory, or a kernel that refuses the shape: another choice may do.
                    print(f"attention {kernel}, loss {kind}: {error}", file=sys.stderr)
            if found:
                _, kind, run = min(found, key=lambda entry: entry[0])
                return run, kind, kernel
        sys.exit("no combination of loss and attention works here")


def peak_rate(args):
    """Floating-point operations per second the card can do at most, where it is known."""
    if args.device == "cpu" or args.dtype != "bf16":
        return None
    name = torch.cuda.get_device_name()
    return next((rate for card, rate in PEAK_BF16.items() if card in name), None)


def main():
    args = arguments()
    torch.set_float32_matmul_precision("high")
    start = time.perf_counter()
    s = shape_of(args)
    trainer = Trainer(args, s)
    run, loss_kind, attention = trainer.choose()
    setup_s = time.perf_counter() - start
    trainer.start(run)
    if args.device == "cuda":
        # What the trials took is not what training takes.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    trainer.step()
    trainer.losses[0].item()
    first_step_s = time.perf_counter() - start
    times = timed(trainer.step, args.steps, max(args.warmup - 1, 0), args.device)
    losses = torch.stack(trainer.losses).tolist()
    median = statistics.median(times)
    flop = flop_per_step(trainer.model)
    peak = peak_rate(args)
    line = {
        "peer": "torch",
        "version": torch.__version__,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "config": args.config,
        "arch": args.arch,
        "mode": args.mode,
        "dtype": args.dtype,
        "loss": loss_kind,
        "attention": attention,
        "params": sum(p.numel() for p in trainer.model.parameters()),
        "B": s.b,
        "T": s.t,
        "steps": args.steps,
        # Building the model, compiling and choosing; `first_step_s` comes after it.
        "setup_s": round(setup_s, 2),
        "first_step_s": round(first_step_s, 2),
        "ms_median": round(median, 2),
        "ms_min": round(min(times), 2),
        "ms_max": round(max(times), 2),
        "tok_s": round(s.b * s.t / median * 1e3, 1),
        "gflops": round(flop / median / 1e6, 1),
        "flop_per_step": flop,
        "mfu": round(flop / median * 1e3 / peak, 4) if peak else None,
        "device_peak_mb": round(torch.cuda.max_memory_allocated() / 2**20) if args.device == "cuda" else None,
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "losses": losses,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
