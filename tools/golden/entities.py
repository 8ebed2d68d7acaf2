"""Writes crates/lehr-eval/tests/golden/entities.json: random sequences of tags and what seqeval says of them.

    pip install seqeval==1.2.2
    python tools/golden/entities.py

Each case has the tags of a few sentences, expected and found, and seqeval's entities and micro and macro averages in its default
mode and, for expected sequences that follow IOB2, in its strict mode with that scheme. Found sequences are random, so most of them
break every scheme. Also sequences in IOB1 and BIOES with their entities.
"""

import json
import math
import random
import warnings
from pathlib import Path

from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2

OUT = Path(__file__).resolve().parents[2] / "crates/lehr-eval/tests/golden/entities.json"
TYPES = ["A", "B", "C"]
N_CASES = 1000


def main():
    rng = random.Random(20261130)
    cases = [case(rng) for _ in range(N_CASES)]
    schemes = [scheme(rng, prefixes) for prefixes in ("IO", "BIO", "BIESO", "BMESO") for _ in range(50)]
    OUT.write_text(json.dumps({"cases": cases, "schemes": schemes}, separators=(",", ":")) + "\n")


def case(rng):
    expected = [sentence(rng) for _ in range(rng.randint(1, 4))]
    found = [disturbed(rng, tags) for tags in expected]
    strict = dict(mode="strict", scheme=IOB2)
    return {
        "expected": [" ".join(tags) for tags in expected],
        "found": [" ".join(tags) for tags in found],
        "lenient": scores(expected, found),
        "strict": scores(expected, found, **strict),
    }


def scores(expected, found, **mode):
    def all_of(average):
        both = dict(average=average, zero_division=0, **mode)
        with warnings.catch_warnings():
            # The mean over no types is not a number; it counts as 0.
            warnings.simplefilter("ignore")
            values = [score(expected, found, **both) for score in (precision_score, recall_score, f1_score)]
        return [0.0 if math.isnan(value) else round(value, 6) for value in values]

    return {"micro": all_of("micro"), "macro_f1": all_of("macro")[2]}


def sentence(rng):
    """Tags that follow IOB2."""
    tags = []
    while len(tags) < rng.randint(3, 12):
        if rng.random() < 0.5:
            tags.append("O")
            continue
        label = rng.choice(TYPES)
        tags += [f"B-{label}"] + [f"I-{label}"] * rng.randint(0, 2)
    return tags


def disturbed(rng, tags):
    wrong = ["O"] + [f"{prefix}-{label}" for prefix in "BI" for label in TYPES]
    return [tag if rng.random() < 0.7 else rng.choice(wrong) for tag in tags]


def scheme(rng, prefixes):
    tags = [rng.choice(prefixes) for _ in range(rng.randint(3, 12))]
    tags = [tag if tag == "O" else f"{tag}-{rng.choice(TYPES[:2])}" for tag in tags]
    # seqeval reads M as unknown; it stands for I.
    entities = get_entities([tag.replace("M-", "I-") for tag in tags])
    return {"tags": " ".join(tags), "entities": [[label, start, end + 1] for label, start, end in entities]}


if __name__ == "__main__":
    main()
