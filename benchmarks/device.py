"""Checks that need a GPU or TPU, in one script of at most 8 minutes on one device.

python -m benchmarks.device --json=FILE [--model=FOLDER|FILE.gguf] [--size=full|tiny]
                            [--only=parity,sampler,attention,reward_model,ppo,decode,plan]

Every check runs in its own process and adds its figures to FILE. On --model (default: random
weights with SmolLM2-135M's shape): log-probabilities in bfloat16 against float32; in bfloat16,
PPO's first probability ratio and the sampler's mismatch. On random arrays: the flash kernel against
XLA in values, gradients and time. On a random LLaMA with 1B parameters: MFU of a reward-model and a
PPO step, decoding against the memory-bandwidth roofline, and used memory against launch.plan. A
failed check is recorded, the others continue, and the exit status is 1.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import checkpoint, fresh, ours, work
from benchmarks.work import Sizes
from fgrlhf_jax.data.templates import encode_text
from fgrlhf_jax.functional.policy_losses import logprob_and_entropy
from fgrlhf_jax.models import attention, hf_load
from fgrlhf_jax.models.heads import positions_and_mask
from fgrlhf_jax.models.language_model import LanguageModel
from fgrlhf_jax.runtime import accelerators
from fgrlhf_jax.runtime.files import write_json
from launch.shared import process

SECONDS = 480.0  # limit for all checks together
MAX_NATS = 0.02  # largest accepted mean difference of log-probabilities in bfloat16


class Shapes(NamedTuple):
    """Sizes of the checks; ``small`` and ``large`` are names in ``checkpoint.SHAPES``."""

    small: str = "smollm2_135m"
    large: str = "llama_1b"
    columns: int = 128
    heads: tuple[int, ...] = (8, 1024, 32, 8, 64)  # rows, columns, query and kv heads, width
    sizes: Sizes = Sizes(
        *(8, 256), decode=(1, 32, 128), prompt=128, response=128, ppo_rows=16, steps=3
    )


SHAPES = {
    "full": Shapes(),
    "tiny": Shapes("tiny", "tiny", 16, (2, 32, 4, 2, 16), work.TINY._replace(steps=1)),
}


def check_parity(job: dict) -> dict:
    """Log-probabilities of a text in bfloat16 and float32, against float32 at full precision."""
    shapes = SHAPES[job["size"]]
    ids = encode_text(hf_load.load_tokenizer(job["small"]), checkpoint.TEXT.read_text())
    tokens_BS = np.array([ids[31 * b :][: shapes.columns] for b in range(8)])
    logprobs = {}
    for name, dtype in (("exact", "float32"), ("float32", "float32"), ("bfloat16", "bfloat16")):
        model = LanguageModel.load(job["small"], dtype=dtype, lazy=True)
        precision = "highest" if name == "exact" else None
        with jax.set_mesh(model.mesh), jax.default_matmul_precision(precision):
            args = tokens_BS, *positions_and_mask(tokens_BS >= 0)
            logits_BSV = jax.jit(model.module.apply)({"params": model.read_params()}, *args)
            logprob_BS, _ = jax.vmap(logprob_and_entropy)(logits_BSV[:, :-1], tokens_BS[:, 1:])
            logprobs[name] = np.asarray(logprob_BS)
    figures = {}
    for name in ("float32", "bfloat16"):
        difference = np.abs(logprobs[name] - logprobs["exact"])
        figures[name] = {"mean": float(difference.mean()), "max": float(difference.max())}
    require(figures["float32"]["mean"] < MAX_NATS / 10, f"float32 is not exact: {figures}")
    require(figures["bfloat16"]["mean"] < MAX_NATS, f"bfloat16 is not close: {figures}")
    return figures


def check_sampler(job: dict) -> dict:
    """PPO's debug metrics of the first minibatch: ratio and sampler mismatch; PPO checks limits.

    In two micro-batches: in one, the update itself gives the old log-probabilities.
    """
    rows = SHAPES[job["size"]].sizes.ppo_rows // 2
    changes = {"warmup": 0, "steps": 1, "micro_batch_size": rows}
    return run_ours("ppo", job["small"], job["size"], **changes)["debug"]


def check_attention(job: dict) -> dict:
    """The kernel that ``attention=auto`` selects on this device against XLA, in bfloat16."""
    B, S, N, K, H = SHAPES[job["size"]].heads
    chosen = attention.kernel("auto", "bfloat16", H)
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, weight = (
        jax.random.normal(key, (B, S, heads, H), jnp.bfloat16)
        for key, heads in zip(keys, (N, K, K, N), strict=True)
    )

    def loss(q, k, v, kernel: str):
        output = attention.self_attention(q, k, v, None, kernel)
        return jnp.sum((output * weight).astype(jnp.float32)), output

    outputs, seconds = {}, {}
    for kernel in ("xla", chosen):
        step = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True), static_argnums=3)
        outputs[kernel] = jax.block_until_ready(step(q, k, v, kernel))
        clock = time.perf_counter()
        for _ in range(10):
            last = step(q, k, v, kernel)
        jax.block_until_ready(last)
        seconds[kernel] = (time.perf_counter() - clock) / 10
    names, differences = ("dq", "dk", "dv", "value"), {}
    pairs = zip(*(jax.tree.leaves(outputs[kernel]) for kernel in (chosen, "xla")), strict=True)
    for name, (own, other) in zip(names, pairs, strict=True):
        own, other = np.asarray(own, np.float32), np.asarray(other, np.float32)
        differences[name] = float(np.abs(own - other).mean() / np.abs(other).mean())
    require(max(differences.values()) < 0.02, f"{chosen} is not XLA's: {differences}")
    return {"kernel": chosen, "seconds": seconds, "relative_difference": differences}


def check_reward_model(job: dict) -> dict:
    return mfu(run_ours("rm", job["large"], job["size"]))


def check_ppo(job: dict) -> dict:
    return mfu(run_ours("ppo", job["large"], job["size"]))


def check_decode(job: dict) -> dict:
    """Tokens/s against the limit from reading weights and KV cache once per token."""
    cfg, figures = hf_load.read_config(job["large"]), {}
    for item in make_work("decode", job["large"], job["size"]):
        result = ours.main(item.script, item.job | {"dtype": "bfloat16"})
        rows, columns = len(item.job["prompts"]), len(item.job["prompts"][0])
        columns += item.job["response"] / 2
        layer = cfg.hidden_size * (
            2 * cfg.head_dim * (cfg.num_heads + cfg.num_kv_heads) + 3 * cfg.intermediate_size
        )
        weights = 2 * (cfg.num_layers * layer + cfg.vocab_size * cfg.hidden_size)
        cache = 4 * cfg.num_layers * rows * columns * cfg.num_kv_heads * cfg.head_dim
        rate = result["count"] / np.median(result["seconds"])
        figures[item.name] = {"tokens_per_second": rate, "bytes_a_step": weights + cache}
        if device := accelerators.find(jax.devices()[0].device_kind):
            roof = rows * device.bandwidth / (weights + cache)
            figures[item.name] |= {"roof": roof, "share": rate / roof}
    return figures


def check_plan(job: dict) -> dict:
    """Peak memory of a reward-model step against the prediction of launch.plan on a CPU."""
    (item,) = make_work("rm", job["large"], job["size"])
    run_ours("rm", job["large"], job["size"], warmup=0, steps=1)
    statistics = jax.devices()[0].memory_stats() or {}
    data = item.job["data"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        values = {
            "model.path": job["large"],
            "model.remat": False,
            "model.dtype": "bfloat16",
            "batch_size": item.job["batch_size"],
            "micro_batch_size": 0,
            "data.max_length": data["max_length"],
            "data.max_prompt_length": data["max_prompt_length"],
        }
        flags = [f"--config.{name}={value}" for name, value in values.items()]
        command = [sys.executable, "-m", "launch.plan", "--config=configs/rm.py:smollm2,sequence"]
        completed = subprocess.run(
            [*command, *flags, "--devices=1", f"--json={file}"],
            capture_output=True,
            text=True,
            cwd=fresh.ROOT,
        )
        require(file.exists(), f"launch.plan: {completed.stderr[-500:]}")
        planned = json.loads(file.read_text())["steps"]["train"]["total"]
    figures = {"planned": planned, "measured": statistics.get("peak_bytes_in_use")}
    if figures["measured"]:
        figures["ratio"] = figures["measured"] / planned
        require(0.7 < figures["ratio"] < 1.15, f"not the memory that was planned: {figures}")
    return figures


CHECKS: dict[str, Callable[[dict], dict]] = {
    "parity": check_parity,
    "sampler": check_sampler,
    "attention": check_attention,
    "reward_model": check_reward_model,
    "ppo": check_ppo,
    "decode": check_decode,
    "plan": check_plan,
}


def make_work(group: str, model: str, size: str) -> list[work.Work]:
    return work.make([group], Path(model), fresh.CACHE, "", "", SHAPES[size].sizes)


def run_ours(group: str, model: str, size: str, **changes) -> dict:
    """Runs this project's side of an item in bfloat16; adds the FLOPs of one timed step."""
    (item,) = make_work(group, model, size)
    result = ours.main(item.script, item.job | {"dtype": "bfloat16"} | changes)
    return {"flops": result.get("model_flops") or item.flops(result)} | result


def mfu(result: dict) -> dict:
    """Seconds per step, FLOP/s, and MFU if the device's peak is known."""
    seconds = float(np.median(result["seconds"]))
    rate = result["flops"] / seconds
    figures = {"seconds": seconds, "tflops": rate / 1e12, "stages": result.get("stages", {})}
    if device := accelerators.find(jax.devices()[0].device_kind):
        figures["mfu"] = rate / device.flops
    statistics = jax.devices()[0].memory_stats() or {}
    return figures | {"peak_bytes": statistics.get("peak_bytes_in_use")}


def require(holds: bool, message: str) -> None:
    if not holds:
        raise RuntimeError(message)


def main(argv: list[str]) -> bool:
    """Runs the checks; returns whether all succeeded."""
    options = fresh.parse_options(__doc__, argv, CHECKS, model="")
    end, results = time.monotonic() + SECONDS, fresh.read_results(options.json)
    for name in options.only:
        print(f"{name} …", flush=True)
        command = [sys.executable, "-m", "benchmarks.device", f"--check={name}"]
        clock = time.monotonic()
        try:
            require(clock < end, "not run: the time is up")
            job = {"model": options.model, "size": options.size}
            results[name] = fresh.run(command, job, end - clock)
        except RuntimeError as error:
            results[name] = {"error": str(error)}
        results[name]["wall_seconds"] = time.monotonic() - clock
        print(f"{name}: {json.dumps(results[name])}", flush=True)
        write_json(options.json, results)
    return not any("error" in results[name] for name in options.only)


def run_check(name: str, job: dict) -> dict:
    """Runs one check in this process."""
    shapes = SHAPES[job["size"]]
    small = checkpoint.language_model(job["model"], fresh.CACHE, shapes.small)
    large = small
    if name in ("reward_model", "ppo", "decode", "plan"):
        large = checkpoint.language_model("", fresh.CACHE, shapes.large)
    figures = CHECKS[name](job | {"small": str(small), "large": str(large)})
    return {"device": jax.devices()[0].device_kind} | figures


def command() -> None:
    if sys.argv[1:] and sys.argv[1].startswith("--check="):
        process.enable_huge_pages()
        process.prepare()
        _, check, job, result = sys.argv
        figures = run_check(check.removeprefix("--check="), json.loads(Path(job).read_text()))
        Path(result).write_text(json.dumps(figures))
        return
    fresh.exit_with_status(lambda: main(sys.argv[1:]))


if __name__ == "__main__":
    command()
