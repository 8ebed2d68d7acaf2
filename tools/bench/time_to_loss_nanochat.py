"""What time_to_loss.py needs of nanochat's Python environment. It starts this with the checkout on the path.

    time_to_loss_nanochat.py shards FOLDER   writes FOLDER/{train,val}.jsonl as the Parquet files that nanochat reads
    time_to_loss_nanochat.py beginnings FOLDER   writes FOLDER/beginnings.jsonl: the text that nanochat's own evaluation sees
    time_to_loss_nanochat.py bits FOLDER NAME WINDOW STRIDE   scores FOLDER/NAME.jsonl with the trained model and prints a JSON
                                                              object

nanochat's files are in FOLDER/nanochat, its NANOCHAT_BASE_DIR.
"""

import json
import sys
from pathlib import Path

BATCH = 16
N_SHARDS = 4
NO_TARGET = -1
# nanochat's evaluation of data/pretrain: the shortest documents, as much of each as a row holds.
N_BEGINNINGS = 50
BEGINNING_TOKENS = 256


def documents(path):
    with path.open(encoding="utf8") as file:
        return [json.loads(line)["text"] for line in file]


def shards(folder):
    """nanochat takes the last file for validation."""
    import pyarrow
    import pyarrow.parquet

    out = folder / "nanochat" / "base_data_climbmix"
    out.mkdir(parents=True)
    train = documents(folder / "train.jsonl")
    parts = {i: train[i::N_SHARDS] for i in range(N_SHARDS)} | {99_999: documents(folder / "val.jsonl")}
    for number, texts in parts.items():
        path = out / f"shard_{number:05d}.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=64)


def beginnings(folder):
    from nanochat.tokenizer import get_tokenizer

    tokenizer = get_tokenizer()
    encoded = sorted(tokenizer.encode(documents(folder / "val.jsonl")), key=len)[:N_BEGINNINGS]
    pieces = [b"".join(map(tokenizer.decode_single_token_bytes, ids[:BEGINNING_TOKENS])) for ids in encoded]
    with (folder / "beginnings.jsonl").open("w", encoding="utf8") as file:
        # A cut may split a character.
        file.writelines(json.dumps({"text": piece.decode("utf8", "ignore")}, ensure_ascii=False) + "\n" for piece in pieces)


def windows(ids, bos, window, stride):
    """The windows of a document as `lehr eval` cuts them: (tokens, number of targets at the end, whether the first)."""
    room, scored = window - 1, 0
    n_windows = 1 + -(-max(0, len(ids) - room) // stride)
    for at in range(n_windows):
        start = at * stride
        end = min(start + room, len(ids))
        yield [bos, *ids[start:end]], end - scored, at == 0
        scored = end


def score(model, rows, window, bos):
    """−Σ ln p of the targets of up to BATCH windows, and that of the first tokens of documents."""
    import torch

    inputs = torch.full((len(rows), window), bos)
    targets = torch.full((len(rows), window), NO_TARGET)
    for at, (run, n_new, _) in enumerate(rows):
        inputs[at, : len(run)] = torch.tensor(run)
        targets[at, len(run) - 1 - n_new : len(run) - 1] = torch.tensor(run[len(run) - n_new :])
    nats = model(inputs, targets, loss_reduction="none").view(len(rows), window).double()
    return nats.sum().item(), sum(nats[at, 0].item() for at, row in enumerate(rows) if row[2])


def bits(folder, name, window, stride):
    import torch
    from nanochat.checkpoint_manager import load_model

    model, tokenizer, _ = load_model("base", torch.device("cpu"), "eval")
    bos = tokenizer.get_bos_token_id()
    texts = documents(folder / f"{name}.jsonl")
    encoded = tokenizer.encode(texts)
    lengths = [[len(tokenizer.decode_single_token_bytes(id_)) for id_ in ids] for ids in encoded]
    for text, of_tokens in zip(texts, lengths):
        if sum(of_tokens) != len(text.encode()):
            sys.exit(f"the tokens of a document have {sum(of_tokens)} bytes, the document {len(text.encode())}")
    rows = [row for ids in encoded for row in windows(ids, bos, window, stride)]
    with torch.inference_mode():
        sums = [score(model, rows[at : at + BATCH], window, bos) for at in range(0, len(rows), BATCH)]
    result = {
        "nll": sum(nats for nats, _ in sums),
        "first_nll": sum(first for _, first in sums),
        "tokens": sum(map(len, encoded)),
        "bytes": sum(map(sum, lengths)),
        "first_bytes": sum(of_tokens[0] for of_tokens in lengths),
        "documents": len(texts),
        "windows": len(rows),
        "torch": torch.__version__,
    }
    print(json.dumps(result))


def main():
    what, folder, *rest = sys.argv[1:]
    commands = {"shards": shards, "beginnings": beginnings, "bits": bits}
    commands[what](Path(folder), *rest[:1], *map(int, rest[1:]))


if __name__ == "__main__":
    main()
