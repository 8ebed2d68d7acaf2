"""Computes every operation of lehr-tensor with PyTorch: outputs and gradients of small random cases.

    python tools/golden/ops.py [OUT_DIR] [OP...]

writes OUT_DIR/<op>.safetensors (default crates/lehr-tensor/tests/golden), at most 100 KiB each. Keys and parameters are
described in README.md beside this file. Inputs are f32; outputs and gradients are computed in f64 from those inputs and
rounded once, so that they are right to half a unit in the last place. Every case has its own random stream, named by the
operation and the case: adding one changes no other.
"""

import json
import sys
import zlib
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F

from safetensors_file import save

SEED = 20260
BYTES_MAX = 100 * 1024
DEFAULT_OUT = Path(__file__).resolve().parents[2] / "crates/lehr-tensor/tests/golden"
OPS = {}


def f32(value):
    """A parameter as the engine holds it: rounded to f32."""
    return float(numpy.float32(value))


class Draw:
    """The random stream of one case."""

    def __init__(self, name):
        self.generator = torch.Generator().manual_seed(SEED ^ zlib.crc32(name.encode()))

    def normal(self, *shape, std=1.0):
        return torch.randn(shape, generator=self.generator, dtype=torch.float32) * std

    def positive(self, *shape):
        """In [0.25, 2.25), away from the poles of log and division."""
        return torch.rand(shape, generator=self.generator, dtype=torch.float32) * 2 + 0.25

    def ids(self, n, *shape):
        return torch.randint(0, n, shape, generator=self.generator, dtype=torch.int32)


class Case:
    """One case: its parameters, float and integer inputs, and the function of the f64 inputs."""

    def __init__(self, params, inputs, function, ids=(), pass_through=None):
        self.params, self.inputs, self.function, self.ids = params, inputs, function, ids
        self.pass_through = pass_through

    def tensors(self, draw):
        """All tensors of the case by their short keys."""
        out = {f"in{i}": x for i, x in enumerate(self.inputs)}
        out |= {f"ids{i}": x.to(torch.int32) for i, x in enumerate(self.ids)}
        leaves = [x.double().requires_grad_() for x in self.inputs]
        outputs = self.function(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        cotangents = [draw.normal(*(y.shape or (1,))) for y in outputs]
        if self.pass_through:
            grads = cotangents
        else:
            pairs = zip(outputs, cotangents)
            total = sum((y * c.double().reshape(y.shape)).sum() for y, c in pairs)
            grads = torch.autograd.grad(total, leaves)
        for i, (y, c) in enumerate(zip(outputs, cotangents)):
            out[f"out{i}"] = y.detach().float().reshape(y.shape or (1,))
            out[f"cot{i}"] = c
        out |= {f"grad{i}": g.float() for i, g in enumerate(grads)}
        return out


def op(function):
    """Registers a function that yields (case name, builder from Draw to Case)."""
    OPS[function.__name__] = function
    return function


def elementwise(name, function, inputs, params=None, suffix=""):
    """Cases of an operation that works on numbers one by one."""
    for label, shape in [("one", (1,)), ("odd_3x7", (3, 7)), ("rank3_2x3x33", (2, 3, 33))]:
        yield label + suffix, lambda d, s=shape: Case(params or {}, [draw(d, s) for draw in inputs], function)


NORMAL = lambda d, s: d.normal(*s)
WIDE = lambda d, s: d.normal(*s, std=3.0)
POSITIVE = lambda d, s: d.positive(*s)


def register_elementwise():
    """The operations on numbers one by one: name, function, how each input is drawn."""
    table = {
        "add": (lambda a, b: a + b, [NORMAL, NORMAL]),
        "sub": (lambda a, b: a - b, [NORMAL, NORMAL]),
        "mul": (lambda a, b: a * b, [NORMAL, NORMAL]),
        "div": (lambda a, b: a / b, [NORMAL, POSITIVE]),
        "neg": (lambda x: -x, [NORMAL]),
        "exp": (torch.exp, [NORMAL]),
        "log": (torch.log, [POSITIVE]),
        "tanh": (torch.tanh, [NORMAL]),
        "sigmoid": (torch.sigmoid, [WIDE]),
        "silu": (F.silu, [WIDE]),
        "relu2": (lambda x: torch.relu(x) ** 2, [NORMAL]),
        "swiglu": (lambda gate, up: F.silu(gate) * up, [WIDE, NORMAL]),
        "geglu_tanh": (lambda gate, up: F.gelu(gate, approximate="tanh") * up, [WIDE, NORMAL]),
        "geglu_erf": (lambda gate, up: F.gelu(gate) * up, [WIDE, NORMAL]),
        "sum": (torch.sum, [NORMAL]),
        "mean": (torch.mean, [NORMAL]),
    }
    for name, (function, inputs) in table.items():
        OPS[name] = lambda name=name, function=function, inputs=inputs: elementwise(name, function, inputs)


register_elementwise()


@op
def gelu():
    for approximate in ["tanh", "erf"]:
        torch_name = "none" if approximate == "erf" else approximate
        function = lambda x, a=torch_name: F.gelu(x, approximate=a)
        yield from elementwise("gelu", function, [WIDE], {"approximate": approximate}, f"_{approximate}")


@op
def scale():
    for label, factor in [("half", 0.5), ("minus_1_3", -1.3)]:
        function = lambda x, f=f32(factor): x * f
        yield from elementwise("scale", function, [NORMAL], {"factor": factor}, f"_by_{label}")


@op
def softcap():
    for cap in [5.0, 30.0]:
        function = lambda x, c=cap: c * torch.tanh(x / c)
        draw = lambda d, s, c=cap: d.normal(*s, std=c)
        yield from elementwise("softcap", function, [draw], {"cap": cap}, f"_cap_{cap:.0f}")


@op
def softmax():
    for shape in [(1, 1), (3, 7), (2, 3, 33), (4, 130)]:
        label = "x".join(map(str, shape))
        yield f"last_dim_{label}", lambda d, s=shape: Case({}, [d.normal(*s, std=4.0)], lambda x: torch.softmax(x, -1))


@op
def embedding():
    for label, (n, width), shape in [
        ("one", (1, 1), (1, 1)),
        ("odd_2x5_of_11x7", (11, 7), (2, 5)),
        ("repeated_3x17_of_5x33", (5, 33), (3, 17)),
    ]:

        def build(d, n=n, width=width, shape=shape):
            ids = d.ids(n, *shape)
            return Case({}, [d.normal(n, width)], lambda w: w[ids.long()], [ids])

        yield label, build


@op
def gather_rows():
    for label, (n, width), k in [("one", (1, 1), 1), ("odd_4_of_9x7", (9, 7), 4), ("repeated_13_of_5x33", (5, 33), 13)]:

        def build(d, n=n, width=width, k=k):
            ids = d.ids(n, k)
            return Case({}, [d.normal(n, width)], lambda x: x[ids.long()], [ids])

        yield label, build


@op
def linear():
    for bias in [False, True]:
        for shape, n_out in [((1, 1), 1), ((5, 7), 33), ((2, 3, 33), 7)]:

            def build(d, shape=shape, n_out=n_out, bias=bias):
                inputs = [d.normal(*shape), d.normal(n_out, shape[-1])] + ([d.normal(n_out)] if bias else [])
                return Case({"bias": bias, "layout": "out_in"}, inputs, F.linear)

            label = "x".join(map(str, shape))
            yield f"{'bias' if bias else 'no_bias'}_{label}_to_{n_out}", build


@op
def weighted_sum():
    """The first terms have learned weights: inputs are the terms, then those weights."""
    for label, shape, factors, n_weights in [
        ("one", (1,), [1.0], 1),
        ("two_of_3x7", (3, 7), [1.0, -1.0], 1),
        ("four_of_2x3x33", (2, 3, 33), [1.0, 0.5, 1.0, -2.0], 3),
    ]:

        def build(d, shape=shape, factors=factors, n_weights=n_weights):
            n = len(factors)
            inputs = [d.normal(*shape) for _ in factors] + [d.normal(1) for _ in range(n_weights)]

            def function(*x):
                weights = list(x[n:]) + [1.0] * (n - n_weights)
                return sum(f * w * term for f, w, term in zip(factors, weights, x))

            params = {"terms": n} | {f"factor{i}": f for i, f in enumerate(factors)}
            return Case(params, inputs, function)

        yield label, build


@op
def add_gated():
    """x + factor * scale * sigmoid(logits) * other, with a learned scale in some cases."""
    for scaled in [False, True]:
        for shape in [(1, 1), (3, 7), (2, 3, 33)]:

            def build(d, shape=shape, scaled=scaled):
                inputs = [d.normal(*shape), d.normal(*shape), d.normal(*shape[:-1], std=2.0)]
                inputs += [d.normal(1)] if scaled else []

                def function(x, other, logits, scale=1.0):
                    return x + 3.0 * scale * torch.sigmoid(logits)[..., None] * other

                return Case({"factor": 3.0}, inputs, function)

            yield f"{'scaled' if scaled else 'plain'}_{'x'.join(map(str, shape))}", build


@op
def previous_rows():
    """Channels from..to of each head are those of the previous token; ids0 is 1 where a text begins."""
    for own in [False, True]:
        for shape, (first, last) in [((1, 1, 3), (0, 3)), ((2, 5, 3, 4), (1, 3)), ((2, 6, 7), (0, 7))]:

            def build(d, shape=shape, own=own, first=first, last=last):
                starts = d.ids(2, shape[0], shape[1])

                def function(x):
                    moved = torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), 1)
                    begins = starts.bool().clone()
                    begins[:, 0] = True
                    begins = begins.reshape(*shape[:2], *[1] * (len(shape) - 2))
                    moved = torch.where(begins, x if own else torch.zeros_like(x), moved)
                    return torch.cat((x[..., :first], moved[..., first:last], x[..., last:]), -1)

                return Case({"from": first, "to": last, "own": own}, [d.normal(*shape)], function, [starts])

            yield f"{'own' if own else 'zero'}_{'x'.join(map(str, shape))}", build


def rms(x, weight, eps, offset):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + f32(eps)) * (weight + offset)


@op
def layer_norm():
    for bias in [True, False]:
        for shape, eps in [((1, 3), 1e-5), ((5, 7), 1e-5), ((2, 3, 33), 1e-3)]:

            def build(d, shape=shape, eps=eps, bias=bias):
                inputs = [d.normal(*shape) + 0.5, 1 + d.normal(shape[-1], std=0.5)] + (
                    [d.normal(shape[-1])] if bias else []
                )
                function = lambda x, w, b=None: F.layer_norm(x, x.shape[-1:], w, b, f32(eps))
                return Case({"eps": eps, "bias": bias}, inputs, function)

            yield f"{'bias' if bias else 'no_bias'}_{'x'.join(map(str, shape))}_eps_{eps:.0e}".replace("-0", "m"), build


@op
def rms_norm():
    for offset in [0.0, 1.0]:
        for shape, eps in [((1, 1), 1e-5), ((5, 7), 1e-6), ((2, 3, 33), 1e-3)]:

            def build(d, shape=shape, eps=eps, offset=offset):
                inputs = [d.normal(*shape), 1 - offset + d.normal(shape[-1], std=0.5)]
                return Case({"eps": eps, "offset": offset}, inputs, lambda x, w: rms(x, w, eps, offset))

            label = "one_plus_weight" if offset else "weight"
            yield f"{label}_{'x'.join(map(str, shape))}_eps_{eps:.0e}".replace("-0", "m"), build


@op
def add_norm():
    table = [("rms", False, 0.0), ("rms", False, 1.0), ("layer", True, 0.0), ("layer", False, 0.0)]
    for norm, bias, offset in table:
        for shape in [(1, 5), (2, 3, 33)]:

            def build(d, shape=shape, norm=norm, bias=bias, offset=offset):
                width = shape[-1]
                inputs = [d.normal(*shape), d.normal(*shape, std=0.5), 1 - offset + d.normal(width, std=0.5)]
                inputs += [d.normal(width)] if bias else []

                def function(x, delta, weight, b=None):
                    y = x + delta
                    normed = (
                        rms(y, weight, 1e-5, offset)
                        if norm == "rms"
                        else F.layer_norm(y, y.shape[-1:], weight, b, f32(1e-5))
                    )
                    return y, normed

                return Case({"norm": norm, "eps": 1e-5, "offset": offset, "bias": bias}, inputs, function)

            label = norm + ("_one_plus_weight" if offset else "") + ("_bias" if bias else "")
            yield f"{label}_{'x'.join(map(str, shape))}", build


def inverse_frequencies(n, params):
    """theta^(-2i/n) for i < n/2; stretched as Llama 3 does if a scaling factor is given."""
    inv = params["theta"] ** (-torch.arange(0, n, 2, dtype=torch.float64) / n)
    if "scaling_factor" not in params:
        return inv
    low, high = params["low_freq_factor"], params["high_freq_factor"]
    turns = params["original_positions"] * inv / (2 * torch.pi)
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * inv / params["scaling_factor"] + smooth * inv


def rotate(x, positions, params):
    """Rotates all of the last dimension of `x` [B,T,H,n]."""
    angle = positions.double()[:, :, None, None] * inverse_frequencies(x.shape[-1], params)
    cos, sin = angle.cos(), angle.sin()
    if params["style"] == "adjacent":
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


@op
def rope():
    def table():
        base = {"style": "half_split", "theta": 10000.0, "rotary_dim": 8}
        llama3 = {"scaling_factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_positions": 32}
        yield "half_split_one_pair", (1, 1, 1, 2), base | {"rotary_dim": 2}, 1
        yield "half_split_2x5x3x8", (2, 5, 3, 8), base, 1
        yield "adjacent_2x5x3x8", (2, 5, 3, 8), base | {"style": "adjacent"}, 1
        yield "half_split_partial_half_1x7x2x12", (1, 7, 2, 12), base | {"rotary_dim": 6}, 1
        yield "adjacent_partial_half_2x3x2x16", (2, 3, 2, 16), base | {"style": "adjacent"}, 1
        yield (
            "half_split_llama3_scaled_1x9x2x16",
            (1, 9, 2, 16),
            base | {"theta": 500000.0, "rotary_dim": 16} | llama3,
            1,
        )
        yield "half_split_2d_2x5x3x8", (2, 5, 3, 8), base, 2
        yield "half_split_2d_1x3x1x12", (1, 3, 1, 12), base | {"rotary_dim": 12}, 2

    for name, shape, params, streams in table():

        def build(d, shape=shape, params=params, streams=streams):
            ids = [d.ids(60, *shape[:2]) for _ in range(streams)]

            def function(x):
                if streams == 2:
                    return torch.cat([rotate(half, p, params) for half, p in zip(x.chunk(2, -1), ids)], -1)
                n = params["rotary_dim"]
                return torch.cat((rotate(x[..., :n], ids[0], params), x[..., n:]), -1)

            return Case(params | {"streams": streams}, [d.normal(*shape)], function, ids)

        yield name, build


def visible(params, ids, batch, n_queries, n_keys):
    """[B,Tq,Tk]: which keys each query sees. The queries are the last n_queries positions."""
    key = torch.arange(n_keys)
    query = (torch.arange(n_queries) + n_keys - n_queries)[:, None]
    seen = torch.ones(batch, n_queries, n_keys, dtype=torch.bool)
    if params["causal"]:
        seen &= key <= query
    if "window" in params:
        seen &= key > query - params["window"]
    if params.get("segments"):
        start = ids.long()
        seen &= start[:, None, :] == start[:, n_keys - n_queries :, None]
    if params.get("prefix"):
        seen |= key < ids.long()[:, None, None]
    return seen


def attend(q, k, v, params, ids):
    """softmax(scale · q·kᵀ + mask) · v with key-value heads shared by consecutive query heads."""
    groups = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(groups, 2) for x in (k, v))
    scores = torch.einsum("bthe,bshe->bhts", q, k) * f32(params.get("scale", q.shape[-1] ** -0.5))
    if "softcap" in params:
        scores = params["softcap"] * torch.tanh(scores / params["softcap"])
    seen = visible(params, ids[0] if ids else None, q.shape[0], q.shape[1], k.shape[1])
    weights = torch.softmax(scores.masked_fill(~seen[:, None], -torch.inf), -1)
    return torch.einsum("bhts,bshe->bthe", weights, v)


@op
def attention():
    causal, both = {"causal": True}, {"causal": False}
    starts = torch.tensor([[0, 0, 0, 3, 3, 5, 5], [0, 1, 1, 1, 1, 1, 6]])
    # name, parameters, (B, Tq, Tk, H, KV, E), integer inputs
    table = [
        ("causal_one", causal, (1, 1, 1, 1, 1, 1), []),
        ("causal_t33", causal, (1, 33, 33, 2, 2, 5), []),
        ("causal_e64", causal, (1, 4, 4, 1, 1, 64), []),
        ("bidirectional", both, (2, 7, 7, 2, 2, 4), []),
        ("bidirectional_cross_tq3_tk7", both, (1, 3, 7, 2, 2, 4), []),
        ("window_3", causal | {"window": 3}, (2, 9, 9, 2, 2, 4), []),
        ("window_8_offset_tq3_tk13", causal | {"window": 8}, (1, 3, 13, 2, 1, 4), []),
        ("segments", causal | {"segments": True}, (2, 7, 7, 2, 2, 4), [starts]),
        ("segments_bidirectional", both | {"segments": True}, (2, 7, 7, 2, 2, 4), [starts]),
        ("segments_window_2", causal | {"segments": True, "window": 2}, (2, 7, 7, 2, 1, 4), [starts]),
        ("prefix", causal | {"prefix": True}, (3, 7, 7, 2, 2, 4), [torch.tensor([0, 3, 7])]),
        ("prefix_offset_tq2_tk7", causal | {"prefix": True}, (2, 2, 7, 2, 2, 4), [torch.tensor([4, 6])]),
        ("gqa_6_over_2", causal, (1, 5, 5, 6, 2, 4), []),
        ("mqa_4_over_1", causal, (2, 5, 5, 4, 1, 4), []),
        ("offset_tq1_tk11", causal, (2, 1, 11, 4, 2, 4), []),
        ("offset_tq3_tk7", causal, (1, 3, 7, 2, 2, 4), []),
        ("scale_0_3", causal | {"scale": 0.3}, (1, 6, 6, 2, 2, 4), []),
        ("softcap_2", causal | {"softcap": 2.0}, (1, 6, 6, 2, 2, 4), []),
    ]
    for name, params, (b, tq, tk, h, kv, e), ids in table:

        def build(d, params=params, b=b, tq=tq, tk=tk, h=h, kv=kv, e=e, ids=ids):
            inputs = [d.normal(b, tq, h, e), d.normal(b, tk, kv, e), d.normal(b, tk, kv, e)]
            return Case(params, inputs, lambda q, k, v: attend(q, k, v, params, ids), ids)

        yield name, build


def with_ignored(draw, n, vocabulary, ignored):
    targets = draw.ids(vocabulary, n)
    targets[ignored] = -100
    return targets


@op
def linear_cross_entropy():
    # name, rows, width, vocabulary, ignored rows, coefficient of the z-loss, normaliser (None = labelled rows), bias
    table = [
        ("one", 1, 1, 1, [], 0.0, None, False),
        ("all_labelled_7x5_of_33", 7, 5, 33, [], 0.0, None, False),
        ("some_ignored_9x7_of_130", 9, 7, 130, [0, 3, 8], 0.0, None, False),
        ("all_ignored_5x7_of_11", 5, 7, 11, [0, 1, 2, 3, 4], 0.0, 1.0, False),
        ("z_loss_6x5_of_33", 6, 5, 33, [2], 0.01, None, False),
        ("normalizer_20_6x5_of_33", 6, 5, 33, [5], 0.0, 20.0, False),
        ("bias_7x5_of_33", 7, 5, 33, [], 0.0, None, True),
        ("bias_some_ignored_9x7_of_130", 9, 7, 130, [0, 3, 8], 0.0, None, True),
        ("bias_z_loss_6x5_of_33", 6, 5, 33, [2], 0.01, 20.0, True),
    ]
    for name, n, width, vocabulary, ignored, z, normalizer, bias in table:

        def build(d, n=n, width=width, vocabulary=vocabulary, ignored=ignored, z=z, normalizer=normalizer, bias=bias):
            targets = with_ignored(d, n, vocabulary, ignored)
            count = float(n - len(ignored)) if normalizer is None else normalizer

            def function(x, w, b=None):
                labelled = targets != -100
                logits = F.linear(x, w, b)
                lse = torch.logsumexp(logits, -1)
                picked = logits.gather(1, targets.long().clamp(min=0)[:, None])[:, 0]
                return ((lse - picked + f32(z) * lse**2) * labelled).sum() / count

            params = {"normalizer": count, "z_loss": z, "ignore_index": -100}
            inputs = [d.normal(n, width), d.normal(vocabulary, width)] + ([d.normal(vocabulary)] if bias else [])
            return Case(params, inputs, function, [targets])

        yield name, build


@op
def token_logprobs():
    for name, n, width, vocabulary, ignored, bias in [
        ("one_of_2", 1, 1, 2, [], False),
        ("all_7x5_of_33", 7, 5, 33, [], False),
        ("some_ignored_9x7_of_130", 9, 7, 130, [0, 4], False),
        ("bias_some_ignored_9x7_of_130", 9, 7, 130, [0, 4], True),
    ]:

        def build(d, n=n, width=width, vocabulary=vocabulary, ignored=ignored, bias=bias):
            targets = with_ignored(d, n, vocabulary, ignored)

            def function(x, w, b=None):
                log_p = torch.log_softmax(F.linear(x, w, b), -1)
                return log_p.gather(1, targets.long().clamp(min=0)[:, None])[:, 0] * (targets != -100)

            inputs = [d.normal(n, width), d.normal(vocabulary, width)] + ([d.normal(vocabulary)] if bias else [])
            return Case({"ignore_index": -100}, inputs, function, [targets])

        yield name, build


@op
def concat():
    table = [
        ("one_and_one", 0, [(1,), (1,)]),
        ("dim0_2x5_3x5", 0, [(2, 5), (3, 5)]),
        ("last_dim_3x1_3x7_3x4", 1, [(3, 1), (3, 7), (3, 4)]),
        ("middle_dim_2x1x3_2x4x3", 1, [(2, 1, 3), (2, 4, 3)]),
    ]
    for name, dim, shapes in table:
        yield (
            name,
            lambda d, dim=dim, shapes=shapes: Case(
                {"dim": dim}, [d.normal(*s) for s in shapes], lambda *x: torch.cat(x, dim)
            ),
        )


@op
def slice():
    table = [
        ("one_of_one", (1,), 0, 0, 1),
        ("dim0_2_to_5_of_7x3", (7, 3), 0, 2, 5),
        ("last_dim_1_to_6_of_3x7", (3, 7), 1, 1, 6),
        ("middle_dim_3_to_4_of_2x5x3", (2, 5, 3), 1, 3, 4),
    ]
    for name, shape, dim, start, end in table:
        params = {"dim": dim, "start": start, "end": end}
        yield (
            name,
            lambda d, s=shape, p=params: Case(
                p, [d.normal(*s)], lambda x: x.narrow(p["dim"], p["start"], p["end"] - p["start"])
            ),
        )


@op
def cast():
    for dtype, torch_dtype in [("bf16", torch.bfloat16), ("f16", torch.float16)]:
        for shape in [(1,), (5, 33)]:
            function = lambda x, t=torch_dtype: x.float().to(t).double()
            build = lambda d, s=shape, f=function, n=dtype: Case(
                {"dtype": n}, [d.normal(*s, std=3.0)], f, pass_through=True
            )
            yield f"through_{dtype}_{'x'.join(map(str, shape))}", build


@op
def matmul():
    table = [
        ("one", (1, 1), (1, 1)),
        ("odd_3x7x5", (3, 7), (7, 5)),
        ("batch2_5x33x7", (2, 5, 33), (2, 33, 7)),
        ("batch2x3_4x1x5", (2, 3, 4, 1), (2, 3, 1, 5)),
    ]
    for name, a, b in table:
        yield name, lambda d, a=a, b=b: Case({}, [d.normal(*a), d.normal(*b)], torch.matmul)


@op
def transpose():
    for name, shape, dims in [
        ("one", (1, 1), (0, 1)),
        ("dims_0_1_of_3x7", (3, 7), (0, 1)),
        ("dims_1_2_of_2x5x3x4", (2, 5, 3, 4), (1, 2)),
        ("dims_0_2_of_3x5x2", (3, 5, 2), (0, 2)),
    ]:
        params = {"dim0": dims[0], "dim1": dims[1]}
        yield name, lambda d, s=shape, p=params, i=dims: Case(p, [d.normal(*s)], lambda x: x.transpose(*i).contiguous())


@op
def mean_pool():
    for name, shape, lengths in [("one", (1, 1, 1), [1]), ("lengths_1_3_5_of_3x5x7", (3, 5, 7), [1, 3, 5])]:

        def build(d, shape=shape, lengths=torch.tensor(lengths)):
            seen = torch.arange(shape[1])[None] < lengths[:, None]
            function = lambda x: (x * seen[..., None]).sum(1) / lengths[:, None]
            return Case({}, [d.normal(*shape)], function, [lengths])

        yield name, build


def write(out, name):
    """Computes all cases of an operation and writes its file; returns the number of cases and bytes."""
    tensors, params = {}, {}
    for case_name, build in OPS[name]():
        draw = Draw(f"{name}/{case_name}")
        case = build(draw)
        assert case_name not in params, f"{name}: two cases {case_name}"
        params[case_name] = case.params
        for key, tensor in case.tensors(draw).items():
            assert tensor.dtype == torch.int32 or torch.isfinite(tensor).all(), f"{name} {case_name} {key}"
            tensors[f"{case_name}.{key}"] = tensor.detach()
    path = out / f"{name}.safetensors"
    save(path, tensors, {"torch": torch.__version__, "seed": str(SEED), "cases": json.dumps(params)})
    size = path.stat().st_size
    assert size <= BYTES_MAX, f"{path} has {size} bytes"
    return len(params), size


def write_adamw(out, n_steps=10):
    """Ten steps of AdamW on three tensors with given gradients: p0 is the start, p<k> the state after step k."""
    settings = {"lr": 0.01, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
    draw = Draw("adamw")
    params = [torch.nn.Parameter(draw.normal(*shape)) for shape in [(5, 7), (33,), (1,)]]
    betas = (settings["beta1"], settings["beta2"])
    optimizer = torch.optim.AdamW(
        params, lr=settings["lr"], betas=betas, eps=settings["eps"], weight_decay=settings["weight_decay"], fused=True
    )
    tensors = {f"p0.{i}": p.detach().clone() for i, p in enumerate(params)}
    for step in range(1, n_steps + 1):
        for i, p in enumerate(params):
            # Sizes from 1e-4 to 10, so that eps and the bias correction matter.
            p.grad = draw.normal(*p.shape) * 10.0 ** (step % 6 - 4)
            tensors[f"g{step}.{i}"] = p.grad.clone()
        optimizer.step()
        tensors |= {f"p{step}.{i}": p.detach().clone() for i, p in enumerate(params)}
    metadata = {"torch": torch.__version__, "seed": str(SEED), "settings": json.dumps(settings | {"steps": n_steps})}
    save(out / "adamw.safetensors", tensors, metadata)


def main():
    torch.set_num_threads(1)
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_OUT
    out.mkdir(parents=True, exist_ok=True)
    names = sys.argv[2:] or [*OPS, "adamw"]
    for name in names:
        if name == "adamw":
            write_adamw(out)
            continue
        n_cases, size = write(out, name)
        print(f"{name:24} {n_cases:3} cases {size:7} bytes")


if __name__ == "__main__":
    main()
