"""This project's side of a job: ``python -m benchmarks.ours WORK JOB.json RESULT.json``.

It calls the same functions as the commands, with the same process settings.
"""

import dataclasses
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.machine import peak_memory_gb
from configs import ppo as ppo_config
from configs import rm as rm_config
from configs import sft as sft_config
from fgrlhf_jax import LanguageModel, SamplingParams
from fgrlhf_jax.data.bucketing import choose_buckets
from fgrlhf_jax.data.demonstrations import Demonstration
from fgrlhf_jax.data.pairs import encode_by_kind
from fgrlhf_jax.data.records import Edit, Instruction, Message, Preference
from fgrlhf_jax.models import heads, hf_load
from fgrlhf_jax.ppo import models as ppo_models
from fgrlhf_jax.ppo.rollout import Prompts
from fgrlhf_jax.ppo.train import PPOTrainer
from fgrlhf_jax.reward_model import train as reward_model
from fgrlhf_jax.reward_model.modules import make_module
from fgrlhf_jax.runtime import sharding
from fgrlhf_jax.runtime.optim import TrainState
from fgrlhf_jax.training import setup, sft
from launch.shared import process

COMPILED = "/backend_compile_duration"  # end of JAX's event name for compilation time


def main(kind: str, job: dict) -> dict:
    """The result of a job: ``seconds`` of each timed step and the ``count`` of units in one."""
    work = {"rm": train_pairs, "sft": train_sft, "decode": decode, "ppo": run_ppo}[kind]
    return work(job) | {"memory_gb": peak_memory_gb()}


def supervised_config(config: ConfigDict, job: dict, width: int) -> ConfigDict:
    """Sets one micro-batch per update, no remat and a constant learning rate."""
    config.model.path, config.model.remat = job["model"], False
    config.model.dtype = job.get("dtype", "float32")
    config.batch_size, config.micro_batch_size = job.get("batch_size") or len(job["rows"]), 0
    config.data.max_length, config.data.max_prompt_length = width, width - 1
    config.steps, config.eval_every = 1000, 0
    config.optimizer.schedule, config.optimizer.learning_rate = "constant", 1e-5
    return config


def train_pairs(job: dict) -> dict:
    """Times updates of a reward model on pairs; with ``epoch`` one pass over all pairs."""
    config = rm_config.get_config("smollm2,sequence")
    supervised_config(config, job, job["data"]["max_length"])
    config.data.update(job["data"])
    rows = [parse(fields) for fields in job["records"]]
    mesh, cfg, tokenizer, data = setup.set_up(config, rows)
    model = make_module(cfg, config.loss, config.model.head)
    pairs = encode_by_kind(rows, "train", tokenizer, data)
    lengths = [pair.length for by_kind in pairs.values() for pair in by_kind]
    buckets = choose_buckets(lengths, config.data.buckets)
    trainer = reward_model.make_trainer(config, mesh, model, pairs, pairs, buckets)
    if not job.get("epoch"):
        return time_updates(trainer, **timing(job)) | {"count": job["count"]}
    updates = trainer.updates_per_epoch
    timed = time_updates(trainer, updates, updates, job["warmup"])  # the second epoch
    return {"seconds": [sum(timed["seconds"])], "count": updates * config.batch_size}


def parse(fields: dict) -> Edit | Preference:
    """The record of a pair from its fields."""
    fields = fields | {"messages": tuple(Message(**turn) for turn in fields["messages"])}
    if "edited" not in fields:
        return Preference(**fields)
    return Edit(**fields | {"error_spans": tuple(map(tuple, fields["error_spans"]))})


def train_sft(job: dict) -> dict:
    """Times SFT updates on rows; the loss covers every token but the first."""
    width = len(job["rows"][0])
    config = supervised_config(sft_config.get_config("smollm2"), job, width)
    config.data.template = "plain"
    rows = [Demonstration(np.array(ids, np.int32), 1) for ids in job["rows"]]
    mesh, cfg, _, _ = setup.set_up(config, rows)
    trainer = sft.make_trainer(config, mesh, heads.CausalLM(cfg), rows, rows, (width,))
    return time_updates(trainer, **timing(job)) | {"count": job["count"]}


def time_updates(trainer, start: int, steps: int, warmup: int) -> dict:
    """Seconds of ``steps`` updates from number ``start``, after ``warmup`` updates before it."""
    state = initial_state(trainer)
    trainer.prepare(state, 0)
    seconds = []
    for number in range(start - warmup, start + steps):
        clock = time.perf_counter()
        state, metrics = trainer.update(state, number)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - clock)
        print(f"step {seconds[-1]:.2f} s", flush=True)
    return {"seconds": seconds[warmup:]}


def timing(job: dict) -> dict:
    return {"start": job["warmup"], "steps": job["steps"], "warmup": job["warmup"]}


def initial_state(trainer) -> TrainState:
    """The initial state, as ``training.run`` makes it without a checkpoint."""
    with jax.set_mesh(trainer.mesh):
        params = trainer.initial_params()
        layout = jax.tree.map(lambda x: x.sharding, trainer.abstract.opt_state)
        return TrainState(params, jax.jit(trainer.optimizer.init, out_shardings=layout)(params))


def decode(job: dict) -> dict:
    """Times greedy decoding without stopping; the time of the prefill is subtracted."""
    dtype = job.get("dtype", "float32")
    model = dataclasses.replace(LanguageModel.load(job["model"], dtype=dtype), end_ids=())
    prompts = job["prompts"]

    def generate(tokens: int) -> float:
        clock = time.perf_counter()
        model.generate_from_ids(
            prompts,
            SamplingParams(max_new_tokens=tokens),
            seed=0,
            streams=[(row, 0) for row in range(len(prompts))],
            batch_size=len(prompts),
        )
        return time.perf_counter() - clock

    for tokens in (1, job["response"]):
        generate(tokens)  # the warm-up
    prefill = statistics.median(generate(1) for _ in range(job["steps"]))
    seconds = [generate(job["response"]) - prefill for _ in range(job["steps"])]
    return {"seconds": seconds, "count": job["count"], "prefill_seconds": prefill}


def run_ppo(job: dict) -> dict:
    """Times PPO iterations, from prompts to the updated policy, with four models of one size."""
    config = ppo_config.get_config("smollm2,sequence")
    config.policy, config.reward_model = job["model"], job["reward_model"]
    if "lora_rank" in job:
        config.lora.rank, config.reward_model = job["lora_rank"], job["reward_adapter"]
    config.model.remat, config.reward_normalization = False, "none"
    config.model.dtype = config.inference_dtype = job.get("dtype", "float32")
    config.rollout_batch_size = config.minibatch_size = job["batch_size"]
    config.micro_batch_size, config.ppo_epochs = job["micro_batch_size"], 1
    config.data.max_prompt_length, config.data.max_new_tokens = job["prompt"], job["response"]
    config.steps = job["warmup"] + job["steps"]
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 1e-6, 0
    models = ppo_models.read_architectures(config)
    tokenizer = ppo_models.read_tokenizer(config, models)
    mesh = sharding.make_mesh(config.mesh)
    ends = hf_load.end_ids(job["model"], tokenizer) if job["end"] is not None else ()
    with mock.patch.object(hf_load, "end_ids", return_value=ends):  # none: no row ends early
        trainer = PPOTrainer(config, mesh, models, tokenizer, prompts_of(job))
    with tempfile.TemporaryDirectory() as folder:
        trainer.folder = Path(folder)
        state = initial_state(trainer)
        trainer.prepare(state, 0)
        seconds, rows = [], []
        for step in range(config.steps):
            clock = time.perf_counter()
            state, metrics = trainer.update(state, step)
            jax.block_until_ready(state)
            seconds.append(time.perf_counter() - clock)
            rows.append(metrics)
            print(f"step {seconds[-1]:.2f} s", flush=True)
    debug = {name: rows[0][name] for name in rows[0] if name.startswith("debug/")}
    stages = {name for name in rows[-1] if name.startswith("time/")}
    tokens, prompts = rows[-1]["tokens"], job["batch_size"]
    return {
        "seconds": seconds[job["warmup"] :],
        "count": tokens if job["end"] is None else prompts,
        "lengths": [tokens / prompts] * prompts,
        "debug": debug,
        "stages": {name.removeprefix("time/"): rows[-1][name] for name in sorted(stages)},
        "model_flops": rows[-1]["model_flops"],
    }


def prompts_of(job: dict) -> dict[str, Prompts]:
    """The job's prompts for training, and no prompts for validation."""
    ids = job["prompts"]
    records = [Instruction("", "", "") for _ in ids]
    return {"train": Prompts(ids, [""] * len(ids), records), "validation": Prompts([], [], [])}


if __name__ == "__main__":
    process.enable_huge_pages()
    process.prepare()
    jax.config.update("jax_enable_compilation_cache", False)  # compilation time is measured
    compiling: list[float] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiling.append(seconds * name.endswith(COMPILED))
    )
    _, kind, job, result = sys.argv
    figures = main(kind, json.loads(Path(job).read_text())) | {"compile_seconds": sum(compiling)}
    Path(result).write_text(json.dumps(figures))
