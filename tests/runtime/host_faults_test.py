"""An error that one process alone has ends both within seconds, each with its sentence."""

import errno
import os
import re

import ppo_cases
import pytest
from host_cases import Pair

pytestmark = [pytest.mark.slow, pytest.mark.long]


# A run of three updates and an export, with a fault in one of the processes.
FAULTY = """
import contextlib, errno, json, os, resource, sys, time
import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from fgrlhf_jax.models import hf_save, heads, llama
from fgrlhf_jax.runtime import files, optim, run_dir, sharding
from fgrlhf_jax.tiny_world.words import make_tokenizer
from fgrlhf_jax.training import run as training
from launch.shared import cli

fault, number = sys.argv.pop(1), int(sys.argv.pop(1))
TOKENIZER = make_tokenizer()
MODEL = heads.CausalLM(llama.LlamaConfig(len(TOKENIZER), 64, 32, 1, 2, 1, 8))

def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

def put_in(name, function):
    if fault == name and jax.process_index() == number:
        print("now", time.time(), flush=True)
        function()

class Trainer:
    steps, data, bar, overlaps, eval_every, patience = 3, "", {}, True, 0, 0
    memory, problem = {}, ""
    optimizer = optax.sgd(0.1, momentum=0.9)

    def __init__(self):
        self.mesh = sharding.make_mesh("1,-1,1")
        params = heads.abstract_params(MODEL, self.mesh)
        self.abstract = optim.abstract_state(params, self.optimizer, self.mesh)

    def initial_params(self):
        params, layout = self.abstract.params, lambda x: x.sharding
        make = lambda x: jax.random.normal(jax.random.key(0), x.shape)  # not to be compressed
        init = lambda: jax.tree.map(make, params)
        return jax.jit(init, out_shardings=jax.tree.map(layout, params))()

    def prepare(self, state, start):
        self.total = jax.jit(lambda params: sum(map(jnp.sum, jax.tree.leaves(params))))
        return {}

    def update(self, state, step):
        if step == 1:
            put_in("row", lambda: setattr(files.JsonlFile, "append", full_disk))
            limit = (2**14, resource.RLIM_INFINITY)
            put_in("checkpoint", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
            put_in("bug", lambda: {}["key"])
        return state, {"loss": self.total(state.params), "tokens": 1}

def main(config):
    cli.use_devices(config)
    trainer, folder = Trainer(), run_dir.open_run(config)
    _, params = training.run(config, trainer, folder)
    put_in("export", lambda: setattr(safetensors.numpy, "save_file", full_disk))
    architecture = hf_save.LANGUAGE_MODEL
    hf_save.save(folder / "export", params, MODEL.cfg, TOKENIZER, architecture=architecture)
    trainer.total(params).block_until_ready()  # in which the others wait

def end(status, exit=os._exit):
    print("end", time.time(), flush=True)
    exit(status)

os._exit = end
cli.command(main, "configs/sft.py:tiny", "")
"""


FULL = f"cannot be written ({os.strerror(errno.ENOSPC)}); free some space"


FAULTS = {  # name: process, exit status of it, sentence
    "row": (0, 2, f"/run/metrics.jsonl: {FULL}"),
    "checkpoint": (1, 2, f"saving a checkpoint failed ({os.strerror(errno.EFBIG)}); "),
    "export": (0, 2, f"/run/export: the model {FULL}"),
    "bug": (1, 1, "KeyError: 'key'"),
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory) -> dict[str, tuple[list[int], list[str]]]:
    """Of every fault the exit statuses and outputs of both processes."""
    pairs = {}
    for name, (number, *_) in FAULTS.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / "worker.py").write_text(FAULTY)
        joined = {"distributed": True, "coordinator": "127.0.0.1:PORT", "num_processes": 2}
        fields = joined | {"process_id": "NUMBER", "run_dir": folder / "run", "save_every": 1}
        arguments = [str(folder / "worker.py"), name, str(number), *ppo_cases.flags(fields)]
        pairs[name] = Pair(arguments, folder)
    return {name: pair.results() for name, pair in pairs.items()}


@pytest.mark.parametrize("name", FAULTS)
def test_an_error_of_one_process_ends_both(faulty, name):
    number, status, sentence = FAULTS[name]
    codes, texts = faulty[name]
    assert codes == [status if n == number else 2 for n in range(2)], texts
    for n, text in enumerate(texts):
        *_, last, end = text.splitlines()
        assert sentence in last
        assert ("Traceback" in text) == (n == number and status == 1), text
        assert n == number or last.startswith(f"error: process {number}: ")
        began = re.search(r"now (\S+)\n", texts[number])[1]
        assert float(end.removeprefix("end ")) - float(began) < 10
