"""A tiny policy, reward models and prompts of the embedded world, and runs of launch.ppo on them.

Run as a script it is launch.ppo under the same conditions as in a test; tests kill this process.
"""

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import hf_cases
import jax
import pytest
import tiny_cases
from processes import Process
from rm_cases import contents, rows, saved, without_clock

from fgrlhf_jax.models import heads, hf_save, llama
from fgrlhf_jax.models.cards import Origin
from fgrlhf_jax.ppo import programs as ppo_programs
from fgrlhf_jax.reward_model.model import Normalization
from fgrlhf_jax.reward_model.modules import RewardMeta, make_module
from fgrlhf_jax.reward_model.scorer import RewardModel
from fgrlhf_jax.runtime import metric_log, sharding
from fgrlhf_jax.runtime.files import read_jsonl, write_jsonl
from fgrlhf_jax.tiny_world.datasets import make_instructions
from fgrlhf_jax.tiny_world.words import make_tokenizer
from launch import ppo
from launch.shared import cli, config_files

DEFAULT = "configs/ppo.py:tiny,token"
FUNCTION = {"reward_model": "", "reward_function": "mine:pay", "critic": "shared"}
TOKENIZER = make_tokenizer()
CFG = llama.LlamaConfig(len(TOKENIZER), 16, 32, 1, 2, 1, 8, max_position=64)
POLICY = heads.CausalLM(CFG)
NORMALIZATION = Normalization(0.1, 2.0)
DATA = {"template": "plain", "max_length": 48, "max_prompt_length": 16, "overlong": "truncate"}
DATA |= {"alignment": "levenshtein", "append_eos": True}
# Fields of supervised runs: short rows; frequent evaluations and checkpoints.
SHORT_ROWS = {"data__max_length": 48, "data__max_prompt_length": 24, "data__buckets": 1}
OFTEN = {"steps": 6, "eval_every": 2, "save_every": 1, "max_to_keep": 6}


def policy_params(seed: int = 0) -> dict:
    """Random parameters of a policy whose responses end after a few tokens."""
    params = tiny_cases.parameters(POLICY, seed)
    params["backbone"]["embed"]["embedding"][:, 0] = 1.0
    params["lm_head"]["kernel"][0, TOKENIZER.eos_token_id] = 1.2
    return params


def save_policy(
    folder: Path, tokenizer=TOKENIZER, seed: int = 0, *, origin=None, base=None, **data
) -> Path:
    """Saves a language model; ``data`` are the recorded settings of its fine-tuning.

    Args:
      base: folder of a model; saves an adapter of it.
    """
    hf_save.save(
        folder,
        hf_cases.adapter_params(POLICY, seed=seed) if base else policy_params(seed),
        CFG,
        tokenizer,
        architecture=hf_save.LANGUAGE_MODEL,
        extra={"data": data} if data else None,
        origin=origin or Origin(str(base or "")),
        adapter=hf_cases.ADAPTER if base else None,
    )
    return folder


def save_reward_model(
    folder: Path,
    loss: str,
    tokenizer=TOKENIZER,
    seed: int = 1,
    *,
    head: str = "after",
    base: Path | None = None,
) -> Path:
    """Saves a reward model as launch.train_rm does; with a ``base`` as an adapter of it."""
    model = make_module(CFG, loss, head)
    settings = {"loss": loss, "consistency_weight": 0.0, "center_weight": 0.3}
    meta = RewardMeta(head, settings, NORMALIZATION, DATA)
    mesh = sharding.make_mesh("1,-1,1")
    params = (hf_cases.adapter_params if base else tiny_cases.parameters)(model, seed=seed)
    options = {"adapter": hf_cases.ADAPTER, "origin": Origin(str(base))} if base else {}
    RewardModel(model, params, tokenizer, meta, mesh).save(folder / "export", **options)
    return folder


class World(NamedTuple):
    """Input folders and files of a run."""

    policy: Path
    token: Path
    sequence: Path
    prompts: Path
    validation: Path


def world(folder: Path) -> World:
    """Writes a policy, two reward models, 40 training prompts and 20 validation prompts."""
    for name, count in {"ppo": 40, "validation": 20}.items():
        write_jsonl(folder / f"{name}.jsonl", make_instructions(count, name, 0))
    return World(
        save_policy(folder / "policy", template="plain"),
        save_reward_model(folder / "token", "token_edit"),
        save_reward_model(folder / "sequence", "sequence"),
        folder / "ppo.jsonl",
        folder / "validation.jsonl",
    )


def fields(world: World, run_dir: Path, **changes) -> dict:
    """Fields of a quick run, with "__" for ".".

    The temperature is not 1, and KL coefficient and learning rate change in every update, so that a
    resumed run differs if it lost any of them.
    """
    fields = {"policy": world.policy, "reward_model": world.token, "run_dir": run_dir}
    fields |= {"prompts": world.prompts, "validation": world.validation, "validation_prompts": 20}
    fields |= {"data__max_prompt_length": 12, "data__max_new_tokens": 6}
    fields |= {"rollout_batch_size": 16, "minibatch_size": 8, "micro_batch_size": 4}
    fields |= {"steps": 4, "eval_every": 2, "save_every": 1, "sampling__temperature": 0.7}
    fields |= {"kl__target": 0.05, "kl__horizon": 100, "optimizer__learning_rate": 1e-2}
    fields |= {"optimizer__schedule": "linear", "optimizer__warmup_steps": 2}
    return fields | {"judge": "fgrlhf_jax.tiny_world.judge:judge"} | changes


def flags(fields: dict) -> list[str]:
    return [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]


def parse(fields: dict, default: str = DEFAULT):
    return config_files.parse(["", *flags(fields)], default)


def launch(command, fields: dict, default: str = "") -> None:
    """Runs a command in this process; its exceptions propagate."""
    command.main(parse(fields, default or command.CONFIG))


def run(fields: dict) -> None:
    launch(ppo, fields, DEFAULT)


def run_until_asked_to_stop(fields: dict) -> None:
    """Runs launch.ppo with a SIGTERM in its second step; the run saves the step and stops."""
    to_floats, calls = metric_log.to_floats, []

    def signalled(tree):
        calls.append(tree)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return to_floats(tree)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metric_log, "to_floats", signalled)
        with pytest.raises(KeyboardInterrupt, match="interrupted; step 2 is saved"):
            run(fields)


def run_until_killed(fields: dict, log: Path) -> None:
    """Kills launch.ppo by SIGKILL and appends a torn row and rows of unsaved steps to its logs."""
    run_dir = Path(fields["run_dir"])
    process = Process([__file__, *flags(fields)], log, log)
    deadline = time.monotonic() + 240
    while len(rows(run_dir)) < 3 or not saved(run_dir):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, process.kill()
        time.sleep(0.002)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    assert not (run_dir / "finished.json").exists()
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "reward/mean": 0.6')
    with (run_dir / "samples.jsonl").open("a") as file:
        file.write('{"step": 99, "output": "never sampled"}\n{"step": 1')


def read_samples(run_dir: Path) -> list[dict]:
    return read_jsonl(run_dir / "samples.jsonl")


def same_run(one: Path, two: Path) -> None:
    """Asserts that two runs left the same files, except for times and checkpoint layout."""
    assert without_clock(one) == without_clock(two)
    assert (one / "samples.jsonl").read_text() == (two / "samples.jsonl").read_text()
    assert contents(one / "export") == contents(two / "export")
    assert saved(one) == saved(two)


class Once:
    """A program that is compiled on first use; ``keys`` records the random key of every call."""

    def __init__(self, name: str, program: ppo_programs.Program):
        self.program, self.arguments = program, program.arguments
        self.place = {"generate": -1, "update": 4}.get(name)  # the key's among the arguments
        self.compiled, self.keys = None, []

    def lower(self):
        self.compiled = self.compiled or self.program.lower().compile()
        return self

    def compile(self):
        return self

    def __call__(self, *args):
        if self.place is not None:
            self.keys.append(args[self.place])
        return self.compiled(*args)


# Fields that no program depends on, or only on whether they are set.
FREE = (
    *("run_dir", "policy", "reward_model", "prompts", "validation", "judge", "best_metric"),
    *("max_to_keep", "save_every", "eval_every", "validation_prompts", "logged_samples"),
    *("reward_normalization", "export", "ptx_edits", "invalid", "columns", "max_seconds"),
)
# Fields that only the update depends on, if micro_batch_size is set.
OF_UPDATES = ("steps", "optimizer", "ppo_epochs", "minibatch_size")
programs: dict[str, Once] = {}
make = ppo_programs.make


@contextlib.contextmanager
def conditions() -> Iterator[None]:
    """Uses one device; runs with equal programs share the compiled ones."""

    def make_once(config, models, mesh, optimizer, **options):
        fields = {k: v for k, v in json.loads(config.to_json()).items() if k not in FREE}
        for name in ("coef", "target", "horizon", "limit"):
            fields["kl"].pop(name)
        fields["reward_function"] = bool(fields["reward_function"])
        shared = {}
        for name, program in make(config, models, mesh, optimizer, **options).items():
            free = OF_UPDATES if name != "update" and config.micro_batch_size else ()
            fixed = {k: v for k, v in fields.items() if k not in free}
            key = [name, fixed, repr(models), repr(mesh), options]
            if name not in ("score_rollout", "update"):  # depend on the policy and arguments
                arguments = getattr(program.function, "keywords", {}), program.arguments
                key = [name, repr(models.policy), repr(program.mesh), repr(arguments)]
            key = json.dumps(key, sort_keys=True)
            shared[name] = programs.setdefault(key, Once(name, program))
        return shared

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo_programs, "make", make_once)
        tiny_cases.one_device(patch)
        yield


if __name__ == "__main__":
    # Shares the compilation cache of the test that starts it.
    cache = Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).parent
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_compilation_cache_max_size", 2**30)
    with conditions():
        cli.command(ppo.main, DEFAULT, ppo.__doc__)
