"""Decodes and encodes blocks of weights with the `gguf` package, the reference of lehr-kernels' formats.

    python tools/golden/quant.py [OUT]

writes OUT (default crates/lehr-kernels/tests/golden/quant.safetensors):

| key | dtype | meaning |
|---|---|---|
| `<format>.blocks` | u8 | random blocks: any bits, but finite scales |
| `<format>.values` | f32 | the numbers they stand for |
| `x` | f32 | numbers to store: normal, and edge cases |
| `<format>.quantized` | u8 | `x` stored, for the formats the package writes |

The same bytes on every run with the pinned versions.
"""

import sys
from importlib import metadata
from pathlib import Path

import gguf
import numpy
import torch
from gguf import GGMLQuantizationType as Type

from safetensors_file import save

SEED = 20261
DEFAULT_OUT = Path(__file__).resolve().parents[2] / "crates/lehr-kernels/tests/golden/quant.safetensors"
# Where the f16 scales of a block stand.
SCALES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    "IQ4_NL": [0], "IQ4_XS": [0],
}  # fmt: skip
WRITTEN = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
N_VALUES = 768


def random_blocks(rng, name):
    """Blocks of N_VALUES numbers; the scales are finite f16 of all magnitudes, zero and subnormal ones among them."""
    block_len, block_bytes = gguf.GGML_QUANT_SIZES[Type[name]]
    blocks = rng.integers(0, 256, (N_VALUES // block_len, block_bytes), dtype=numpy.uint8)
    for at in SCALES.get(name, [0] if name == "F16" else []):
        scales = rng.normal(0, 1, len(blocks)) * 10.0 ** rng.integers(-7, 3, len(blocks))
        scales[-1] = 0.0
        blocks[:, at : at + 2] = scales.astype(numpy.float16).view(numpy.uint8).reshape(-1, 2)
    return blocks


def numbers(rng):
    """Normal numbers of several magnitudes, a block of zeros, of one value, of ties, and with a single number."""
    x = rng.normal(0, 1, (24, 32)) * 10.0 ** rng.integers(-3, 3, (24, 1))
    x[1], x[2], x[3] = 0.0, -0.25, (numpy.arange(32) - 15.5) / 8
    x[4], x[4, 5] = 0.0, 2.0
    x[5], x[5, 0] = 0.5, 127.0
    return x.astype(numpy.float32)


def main():
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_OUT
    rng = numpy.random.Generator(numpy.random.Philox(SEED))
    tensors = {}
    for name in ["F16", "BF16", *SCALES]:
        blocks = random_blocks(rng, name)
        if name == "BF16":
            # No NaN: an exponent of all ones becomes one less.
            high = blocks[:, 1::2]
            high[high & 0x7F == 0x7F] ^= 1
        values = gguf.quants.dequantize(blocks.reshape(-1), Type[name]).reshape(-1)
        assert numpy.isfinite(values).all(), name
        tensors[f"{name}.blocks"] = torch.from_numpy(blocks.reshape(-1))
        tensors[f"{name}.values"] = torch.from_numpy(values.copy())
    x = numbers(rng)
    tensors["x"] = torch.from_numpy(x.reshape(-1))
    for name in WRITTEN:
        stored = gguf.quants.quantize(x, Type[name]).reshape(-1).view(numpy.uint8)
        tensors[f"{name}.quantized"] = torch.from_numpy(stored.copy())
    save(out, tensors, {"gguf": metadata.version("gguf"), "seed": str(SEED)})


if __name__ == "__main__":
    main()
