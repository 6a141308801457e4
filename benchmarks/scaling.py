"""Measures time and memory over growing sizes, to find work that grows faster than its size.

python -m benchmarks.scaling --json=FILE [--only=pairs,batch,length,decode] [--size=full|tiny]

pairs: number of edits to encode, align and plan into batches, without a model. batch: rows of 128
tokens per update of a small LLaMA. length: tokens per row, in updates of 8 rows. decode: responses
of 64 tokens per batch. Every point runs in its own process. Power p: time grew as size^p since the
last point.
"""

import itertools
import json
import math
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks import checkpoint, fresh, ours
from benchmarks.machine import peak_memory_gb
from fgrlhf_jax.data.bucketing import choose_buckets, plan_epoch
from fgrlhf_jax.data.pairs import encode_by_kind, pad_pairs
from fgrlhf_jax.data.records import Edit
from fgrlhf_jax.models import hf_load
from fgrlhf_jax.runtime.files import write_json
from launch.shared import process

POINTS = {
    "full": {
        "pairs": (1_000, 10_000, 100_000),
        "batch": (4, 16, 64, 256),
        "length": (64, 128, 256, 512),
        "decode": (1, 8, 64),
    },
    "tiny": {"pairs": (50, 100), "batch": (2,), "length": (), "decode": ()},
}
MODELS = {"full": "small", "tiny": "tiny"}
LIMIT = 300.0  # seconds per point


def prepare_pairs(model: str, count: int) -> float:
    """Seconds from records to the plan of an epoch and its first batch."""
    words = checkpoint.TEXT.read_text().split()
    rows = []
    for n in range(count):
        original = [words[(7 * n + k) % len(words)] for k in range(40)]
        edited = [*original[:20], f"word{n}", *original[21:]]
        rows.append(Edit("Write a clause.", "", " ".join(original), " ".join(edited)))
    tokenizer = hf_load.load_tokenizer(model)
    data = {"template": "plain", "max_length": 256, "max_prompt_length": 64}
    clock = time.perf_counter()
    pairs = encode_by_kind(rows, "train", tokenizer, data)["edits"]
    lengths = [pair.length for pair in pairs]
    buckets = choose_buckets(lengths, 6)
    width, numbers = plan_epoch(lengths, 16, buckets, seed=0, epoch=0)[0]
    pad_pairs([pairs[n] for n in numbers], width)
    return time.perf_counter() - clock


def update(model: str, rows: int, columns: int) -> float:
    """Seconds per update on rows of random tokens."""
    ids = np.random.default_rng(0).integers(5, 500, (rows, columns)).tolist()
    job = {"model": model, "rows": ids, "warmup": 1, "steps": 3, "count": rows * columns}
    return float(np.median(ours.train_sft(job)["seconds"]))


def decode(model: str, rows: int) -> float:
    """Seconds for responses of 64 tokens to prompts of 32 tokens."""
    prompts = np.random.default_rng(0).integers(5, 500, (rows, 32)).tolist()
    job = {"model": model, "prompts": prompts, "response": 64, "steps": 3, "count": rows * 63}
    return float(np.median(ours.decode(job)["seconds"]))


def measure(name: str, model: str, size: int) -> dict:
    """Measures one point: its seconds and the peak memory of this process."""
    seconds = {
        "pairs": lambda: prepare_pairs(model, size),
        "batch": lambda: update(model, size, 128),
        "length": lambda: update(model, 8, size),
        "decode": lambda: decode(model, size),
    }[name]()
    return {"size": size, "seconds": seconds, "memory_gb": peak_memory_gb()}


def powers(points: list[dict]) -> list[dict]:
    """Adds ``power`` to each point but the first: time grew as size^power since the last point."""
    for last, point in itertools.pairwise(points):
        growth = max(point["seconds"], 1e-9) / max(last["seconds"], 1e-9)
        point["power"] = math.log(growth) / math.log(point["size"] / last["size"])
    return points


def main(argv: list[str]) -> None:
    """Measures all points and prints them as a table."""
    options = fresh.parse_options(__doc__, argv, POINTS["full"])
    model = checkpoint.language_model("", fresh.CACHE, MODELS[options.size])
    results = {}
    print(f"{'':8}{'size':>10}{'seconds':>12}{'GB':>8}{'power':>8}")
    for name in options.only:
        points = []
        for size in POINTS[options.size][name]:
            command = [sys.executable, "-m", "benchmarks.scaling", "--point"]
            point = fresh.run(command, [name, str(model), size], LIMIT)
            points = powers([*points, point])
            power = f"{point['power']:8.2f}" if "power" in point else ""
            row = f"{name:8}{size:10,}{point['seconds']:12.4g}{point['memory_gb']:8.2f}{power}"
            print(row, flush=True)
            results[name] = points
            write_json(options.json, results)


def command() -> None:
    if sys.argv[1:2] == ["--point"]:
        process.enable_huge_pages()
        process.prepare()
        *_, job, result = sys.argv
        Path(result).write_text(json.dumps(measure(*json.loads(Path(job).read_text()))))
        return
    fresh.exit_with_status(lambda: main(sys.argv[1:]))


if __name__ == "__main__":
    command()
