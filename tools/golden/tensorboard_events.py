"""Event files of TensorBoard: the golden file, and a check of a run by the official reader.

    tensorboard_events.py crates/lehr-train/tests/golden      writes events.out.tfevents.golden with the official writer
    tensorboard_events.py check runs/my                       compares a run's event files with its metrics.jsonl
"""

import json
import math
import pathlib
import sys

from tensorboard.backend.event_processing import event_accumulator
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_ndarray

SCALARS = {
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "lr": "train/learning_rate",
    "tokens_per_s": "speed/tokens_per_s",
    "gflops": "speed/gflops",
    "memory_bytes": "memory/bytes",
}


def scalar(tag, value):
    return Summary.Value(tag=tag, simple_value=value)


def text(tag, value):
    tensor = TensorProto(
        dtype=DT_STRING,
        string_val=[value.encode()],
        tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
    )
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    return Summary.Value(tag=tag, metadata=metadata, tensor=tensor)


def write_golden(folder):
    summary = lambda *values: Summary(value=values)
    events = [
        Event(wall_time=1700000000.25, file_version="brain.Event:2"),
        Event(wall_time=1700000000.5, summary=summary(text("recipe", "    seed = 1\n"))),
        Event(wall_time=1700000001.0, step=1, summary=summary(scalar("train/loss", 8.3125), scalar("validation/loss", 0.0))),
        Event(wall_time=1700000002.125, step=300, summary=summary(text("sample/玻璃", "    " + "glass " * 30 + "\n"))),
        Event(wall_time=1700000003.0, step=2**40, session_log=SessionLog(status=SessionLog.START)),
    ]
    path = pathlib.Path(folder) / "events.out.tfevents.golden"
    with open(path, "wb") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString(deterministic=True))
    print(f"{path}: {path.stat().st_size} bytes")


def close(a, b):
    return abs(a - b) <= 1e-6 * max(abs(a), abs(b)) or (math.isnan(a) and math.isnan(b))


def check(run):
    run = pathlib.Path(run)
    everything = {event_accumulator.SCALARS: 0, event_accumulator.TENSORS: 0}
    board = event_accumulator.EventAccumulator(str(run / "tensorboard"), size_guidance=everything)
    board.Reload()
    lines = [json.loads(line) for line in open(run / "metrics.jsonl")]
    steps = [line for line in lines if "event" not in line]
    n_values = 0

    def compare(tag, want):
        nonlocal n_values
        found = [(event.step, event.value) for event in board.Scalars(tag)]
        assert [step for step, _ in found] == [step for step, _ in want], (tag, found[:9], want[:9])
        for (step, a), (_, b) in zip(found, want):
            assert close(a, math.nan if b is None else b), (tag, step, a, b)
        n_values += len(found)

    for key, tag in SCALARS.items():
        compare(tag, [(line["step"], line[key]) for line in steps])
    for key in ["loss", "bits_per_byte", "accuracy"]:
        want = [(line["step"], line["eval"][key]) for line in steps if (line.get("eval") or {}).get(key) is not None]
        if want:
            compare(f"validation/{key}", want)
    texts = board.Tags()["tensors"]
    assert "recipe" in texts, texts
    recipe = make_ndarray(board.Tensors("recipe")[0].tensor_proto)[0].decode()
    assert recipe == "".join(f"    {line}\n" for line in open(run / "recipe.toml").read().splitlines())
    samples = run / "samples.jsonl"
    for line in map(json.loads, open(samples) if samples.exists() else []):
        found = {event.step: event.tensor_proto for event in board.Tensors(f"sample/{line['prompt']}")}
        want = "".join(f"    {part}\n" for part in line["text"].splitlines())
        assert make_ndarray(found[line["step"]])[0].decode() == want, line
    print(f"{run}: {len(steps)} steps, {n_values} scalars and {len(texts)} texts are those of its other files")


if __name__ == "__main__":
    check(sys.argv[2]) if sys.argv[1] == "check" else write_golden(sys.argv[1])
