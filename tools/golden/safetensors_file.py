"""Writes safetensors files with the same bytes on every run.

The published writer keeps metadata in a hash map, so its order changes from run to run; files in version control must not.
"""

import json
import struct

import torch

NAMES = {torch.float32: "F32", torch.int32: "I32", torch.uint8: "U8"}


def save(path, tensors, metadata):
    """Writes `tensors` (name to f32, int32 or uint8 tensor, in that order) and `metadata` (text to text)."""
    header, data = {"__metadata__": metadata}, bytearray()
    for name, tensor in tensors.items():
        blob = tensor.contiguous().numpy().tobytes()
        shape = list(tensor.shape)
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": shape,
            "data_offsets": [len(data), len(data) + len(blob)],
        }
        data += blob
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)
