"""Writes small files with torch.save, and beside each what it holds, as safetensors.

    python tools/golden/pickles.py crates/lehr-model/tests/pickle

NAME.pt is what lehr reads; NAME.safetensors has the same tensors under the names lehr gives them. Files in `refused`
are whole for PyTorch but of no use to lehr.
"""

import argparse
import pickle
import sys
import zipfile
from collections import OrderedDict
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

G = torch.Generator().manual_seed(4200)


def rand(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=G).to(dtype)


def dtypes():
    return {
        "f32": rand(2, 3),
        "f16": rand(4, dtype=torch.float16),
        "bf16": rand(3, 2, dtype=torch.bfloat16),
        "f64": rand(5, dtype=torch.float64),
        "i64": torch.arange(-3, 4),
        "i32": torch.arange(6, dtype=torch.int32).reshape(2, 3),
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 4),
        "one": rand(1, 1, 3, 1),
    }


def views():
    base, tied = rand(4, 6), rand(3, 4)
    return OrderedDict(
        [
            ("base", base),
            ("transposed", base.t()),
            ("rows", base[1:3]),
            ("columns", base[:, 2:4]),
            ("every_other", base[::2, ::3]),
            ("permuted", rand(2, 3, 4).permute(2, 0, 1)),
            ("half_columns", rand(4, 4, dtype=torch.bfloat16).t()[1:]),
            ("embed.weight", tied),
            ("lm_head.weight", tied),
            ("parameter", torch.nn.Parameter(rand(2, 2))),
            ("frozen", torch.nn.Parameter(rand(2), requires_grad=False)),
        ]
    )


class Module(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(3, 2)
        self.norm = torch.nn.BatchNorm1d(2)


def module():
    torch.manual_seed(4200)
    return Module().state_dict()


def training():
    """A checkpoint of a training program: weights below `module`, other things beside them."""
    weights = rand(2, 3)
    return {
        "module": OrderedDict([("transformer.weight", weights), ("transformer.bias", rand(3))]),
        "args": argparse.Namespace(lr=0.1, path=Path("/tmp/x"), dtype=torch.float16),
        "optimizer": {"state": {0: {"exp_avg": rand(2, 3, dtype=torch.float16)}}, "param_groups": [{"lr": 0.1}]},
        "rng": np.random.RandomState(1).get_state(),
        "iteration": 1000,
        "big": 1 << 80,
        "checkpoint_version": 3.0,
    }


def nested():
    return {
        "model": {
            "language_model": {
                "embedding": {"word_embeddings": {"weight": rand(4, 2)}},
                "encoder": OrderedDict([("layers.0.weight", rand(2, 2)), ("layers.0._extra_state", None)]),
            }
        },
        "iteration": 7,
    }


def flat(names, value, prefix=""):
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, torch.Tensor):
            names[name] = item.detach().clone().contiguous()
        elif isinstance(item, dict):
            flat(names, item, f"{name}.")
    return names


def save(path, value, weights=None, **settings):
    torch.save(value, path, **settings)
    save_file(flat({}, value if weights is None else weights), path.with_suffix(".safetensors"))


def compressed(path):
    """The same archive, compressed."""
    plain = BytesIO()
    torch.save({"weight": rand(4, 4)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            # The time is fixed, so that the file is the same on every run.
            target.writestr(zipfile.ZipInfo(name), source.read(name), zipfile.ZIP_DEFLATED)


def main(out):
    refused = out / "refused"
    refused.mkdir(parents=True, exist_ok=True)
    legacy = {"_use_new_zipfile_serialization": False}
    save(out / "dtypes.pt", dtypes())
    save(out / "views.pt", views())
    save(out / "module.pt", module())
    save(out / "protocol4.pt", dtypes(), pickle_protocol=4)
    save(out / "protocol5.pt", views(), pickle_protocol=5)
    value = training()
    save(out / "training.pt", value, value["module"])
    value = nested()
    save(out / "nested.pt", value, value["model"])
    save(out / "legacy.pt", dtypes(), **legacy)
    save(out / "legacy_views.pt", views(), **legacy)
    value = training()
    save(out / "legacy_training.pt", value, value["module"], pickle_protocol=4, **legacy)

    torch.save(Module(), refused / "whole_module.pt")
    torch.save({"weight": rand(2), "args": Path("/tmp")}, refused / "path_beside.pt")
    torch.save([rand(2)], refused / "list.pt")
    torch.save({"weight": torch.ones(1).expand(1 << 20)}, refused / "expanded.pt")
    torch.save({"weight": torch.sparse_coo_tensor([[0], [1]], [1.0], (2, 2))}, refused / "sparse.pt")
    (refused / "plain_pickle.pt").write_bytes(pickle.dumps({"weight": [1.0, 2.0]}, protocol=4))
    compressed(refused / "compressed.pt")
    torch.save({"weight": rand(2)}, refused / "big_endian.pt")
    data = (refused / "big_endian.pt").read_bytes()
    (refused / "big_endian.pt").write_bytes(data.replace(b"little", b"big\n\n\n"))
    torch.save({"weight": rand(2)}, refused / "legacy_big_endian.pt", **legacy)
    data = (refused / "legacy_big_endian.pt").read_bytes()
    # NEWTRUE after the key and its place in the memo.
    at = data.index(b"little_endian")
    at = data.index(b"\x88", at)
    (refused / "legacy_big_endian.pt").write_bytes(data[:at] + b"\x89" + data[at + 1 :])

    folder = out / "llama"
    folder.mkdir(exist_ok=True)
    golden = out.parent / "golden" / "llama" / "model.safetensors"
    torch.save(load_file(golden), folder / "pytorch_model.bin")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
