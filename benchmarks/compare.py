"""Compares this project with torch, TRL and Hugging Face generate: same checkpoint, same tokens.

python -m benchmarks.compare [--only=rm,rm_edits,sft,decode,ppo,ppo_lora,ppo_real]
                             [--model=FOLDER|FILE.gguf] [--edits=FILE] [--prompts=FILE]
                             --json=FILE [--markdown=FILE] [--peers=FOLDER]
                             [--sides=ours,peer] [--rounds=2] [--steps=3] [--limit=1200]

This project ("ours") and the peer run each item in turn (A B A B), each time in a fresh process,
with one warm-up step and a few timed steps (ppo_real: one step, no warm-up). The ratio is ours /
peer in units per second (above 1: ours is faster), the median over rounds; its spread is the lowest
and highest round (null for one round). benchmarks/peers/setup.sh installs the peers into --peers
(benchmarks/peers/venv). Without --model the weights are random, with SmolLM2-135M's shape; rm_edits
and ppo_real need their files. Results are written after every item; --json keeps earlier results of
other items.
"""

import argparse
import os
import statistics
import sys
from pathlib import Path

from benchmarks import checkpoint, fresh, machine, table, work
from benchmarks.work import Sizes, Work
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime.files import write_json, write_text

HERE = Path(__file__).resolve().parent
SIDES = ("ours", "peer")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Parses the options; raises InputError for invalid values."""
    texts = dict.fromkeys(("model", "edits", "prompts", "markdown"), "")
    texts |= {"peers": str(HERE / "peers" / "venv"), "sides": ",".join(SIDES)}
    numbers = {"rounds": 2, "steps": Sizes().steps, "limit": 1200.0}
    options = fresh.parse_options(__doc__, argv, work.GROUPS, **texts, **numbers)
    options.sides = fresh.choose("sides", options.sides, SIDES)
    if min(options.rounds, options.steps) < 1:
        raise InputError(f"rounds={options.rounds}, steps={options.steps}: must be at least 1")
    for name, group in (("edits", "rm_edits"), ("prompts", "ppo_real")):
        if group in options.only and not getattr(options, name):
            print(f"{group} is left out: it needs --{name}=FILE")
    if "peer" in options.sides and not python_of(options.peers).exists():
        raise InputError(
            f"peers={options.peers}: there is no bin/python in it; make it with "
            "bash benchmarks/peers/setup.sh, or give --sides=ours"
        )
    return options


def python_of(peers: str) -> Path:
    return Path(peers).absolute() / "bin" / "python"


def main(options: argparse.Namespace) -> bool:
    """Runs all items and writes the results; returns whether all succeeded."""
    print(f"load average {os.getloadavg()[0]:.2f} on {machine.cores()} cores")
    if warning := machine.busy_warning():
        print(warning, file=sys.stderr)
    results = fresh.read_results(options.json)
    size, sizes = ("tiny", work.TINY) if options.size == "tiny" else ("smollm2_135m", Sizes())
    sizes = sizes._replace(steps=options.steps)
    model = checkpoint.language_model(options.model, fresh.CACHE, size)
    items = work.make(options.only, model, fresh.CACHE, options.edits, options.prompts, sizes)
    results["machine"] = {"cores": machine.cores(), "load": os.getloadavg()[0]}
    succeeded = True
    for item in items:
        try:
            results[item.name] = compare(item, options)
            print(table.line(item.name, results[item.name]), flush=True)
        except RuntimeError as error:
            print(f"{item.name}: {error}", file=sys.stderr, flush=True)
            results.setdefault(item.name, {})["error"] = str(error)
            succeeded = False
        write_json(options.json, results)
        if options.markdown:
            write_text(options.markdown, table.markdown(results))
    return succeeded


def compare(item: Work, options: argparse.Namespace) -> dict:
    """Measures one item on both sides and returns its figures for the JSON file.

    Raises:
      RuntimeError: if a side fails or exceeds the time limit.
    """
    flops = machine.measured_flops()
    print(f"{item.name}: matrix products {flops / 1e9:.0f} GFLOP/s in float32", flush=True)
    runs: dict[str, list[dict]] = {side: [] for side in options.sides}
    for number in range(1, options.rounds + 1):
        for side in options.sides:
            print(f"{item.name}: round {number} of {options.rounds}, {side}", flush=True)
            runs[side].append(run(item, side, options))
    rates = {side: [rate(result) for result in results] for side, results in runs.items()}
    figures = {
        "title": item.title,
        "peer_is": item.peer,
        "unit": f"{item.unit}/s",
        **{side: statistics.median(values) for side, values in rates.items()},
        "memory_gb": {side: max(r["memory_gb"] for r in runs[side]) for side in runs},
        "flops_share": {
            side: statistics.median(item.flops(r) / seconds(r) / flops for r in runs[side])
            for side in runs
        },
        "products": flops,
        "runs": runs,
    }
    if compiling := [r["compile_seconds"] for r in runs.get("ours", ()) if "compile_seconds" in r]:
        figures["compile_seconds"] = statistics.median(compiling)
    if len(rates) == 2:
        figures |= compare_rounds(*(rates[side] for side in SIDES))
    if item.script == "decode":
        prefill = {side: [r["prefill_seconds"] for r in runs[side]] for side in runs}
        figures["prefill"] = {side: statistics.median(prefill[side]) for side in runs}
        if len(rates) == 2:
            figures["prefill"] |= compare_rounds(prefill["peer"], prefill["ours"])
    return figures


def compare_rounds(ours: list[float], peer: list[float]) -> dict:
    """Median of the rounds' ratios, and their lowest and highest (None for a single round)."""
    ratios = [a / b for a, b in zip(ours, peer, strict=True)]
    spread = [min(ratios), max(ratios)] if len(ratios) > 1 else None
    return {"ratio": statistics.median(ratios), "spread": spread}


def seconds(result: dict) -> float:
    return statistics.median(result["seconds"])


def rate(result: dict) -> float:
    """Units per second."""
    return result["count"] / seconds(result)


def run(item: Work, side: str, options: argparse.Namespace) -> dict:
    """Runs one side in a fresh process and returns its measurements."""
    command = [sys.executable, "-m", "benchmarks.ours", item.script]
    if side == "peer":
        command = [str(python_of(options.peers)), str(HERE / "peers" / f"{item.script}.py")]
    try:
        result = fresh.run(command, item.job, options.limit, ours=side == "ours")
        fresh.check_seconds(result)
    except RuntimeError as error:
        raise RuntimeError(f"{side} {error}") from error
    return result


def command() -> None:
    fresh.exit_with_status(lambda: main(parse_arguments(sys.argv[1:])))


if __name__ == "__main__":
    command()
