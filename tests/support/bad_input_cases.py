"""What a user may get wrong in the fields of a command, and what is then said."""

import re
import signal
import sys
from pathlib import Path

import pytest

from launch.shared import cli


def launch(monkeypatch, capsys, module, default: str, *flags: str, **fields):
    """Run a command that will fail: (its exit status, the lines on stderr). "__" for the dots."""
    named = [f"--config.{name.replace('__', '.')}={v}" for name, v in fields.items()]
    monkeypatch.setattr(sys, "argv", [module.__name__, *flags, *named])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stop:
            cli.command(module.main, default, module.__doc__)
    finally:
        signal.signal(signal.SIGTERM, before)
    lines = re.split(r"[\r\n]+", capsys.readouterr().err)
    return stop.value.code, [line for line in lines if line.strip()]


def only(result: tuple[int, list[str]]) -> str:
    """The one sentence, without "error: "."""
    status, lines = result
    assert status == 2, lines
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def filled(value, stands: dict):
    """A field's value with the words of a table replaced by what they stand for."""
    for word, meaning in stands.items():
        value = value.replace(word, str(meaning)) if isinstance(value, str) else value
    return value


# For launch.train_rm: fields ("__" for the dots) -> a part of the sentence. DATA is a folder with
# files of every kind.
TRAIN = {
    # data
    "missing file": ({"train": "nowhere.jsonl"}, "nowhere.jsonl: there is no such file"),
    "missing validation": ({"validation": "no.jsonl"}, "no.jsonl: there is no such file"),
    "malformed line": ({"train": "DATA/malformed.jsonl"}, "malformed.jsonl:3: malformed JSON"),
    "empty file": ({"train": "DATA/empty.jsonl"}, "empty.jsonl: holds no rows"),
    "instructions": ({"train": "DATA/instructions.jsonl"}, "train: holds instructions"),
    "instructions to validate on": (
        {"validation": "DATA/instructions.jsonl"},
        "validation: holds instructions",
    ),
    "fewer pairs than a batch": (
        {"batch_size": 64},
        "batch_size: 64 is more than the 48 rows there are",
    ),
    "no train": ({"train": ""}, "train is empty; give --config.train=FILE"),
    "nothing to validate on": (
        {"validation": "", "validation_share": 0.0},
        "none is left for validation",
    ),
    "no room for a response": (
        {"data__max_length": 64},
        "max_prompt_length: 64 must be above 0 and below max_length 64",
    ),
    "too long for the model": (
        {"data__max_length": 1024},
        "data.max_length=1024 is more than the model's 512 positions",
    ),
    "no chat template": ({"data__template": "chat"}, "the tokenizer has no chat template"),
    "freeze": ({"optimizer__freeze": "("}, "optimizer.freeze='(': is no regular expression"),
    "freeze nothing": ({"optimizer__freeze": "embedd$"}, "'embedd$' finds no parameter"),
    "freeze everything": ({"optimizer__freeze": "."}, "freeze='.' finds every parameter"),
    "no run_dir": ({"run_dir": ""}, "run_dir is empty; give --config.run_dir=FOLDER"),
    # meshes, with 8 devices
    "mesh": ({"mesh": "3,1,1"}, "mesh='3,1,1' makes 3 devices and there are 8"),
    "mesh of two sizes": ({"mesh": "8,1"}, "mesh='8,1': give data,fsdp,tensor as three sizes"),
    "mesh of words": ({"mesh": "all"}, "mesh='all': give data,fsdp,tensor as three sizes"),
    "batch over mesh": (
        {"batch_size": 12},
        "micro_batch_size=12 does not divide over data x fsdp = 8 devices",
    ),
    "micro-batches": (
        {"micro_batch_size": 16, "batch_size": 24},
        "batch_size=24 is not a multiple of micro_batch_size=16",
    ),
    # models
    "model": ({"model__path": "nowhere/at/all"}, "nowhere/at/all: no such model; give a "),
    "hub": ({"model__path": "no/model"}, "no/model: neither a local folder nor to be had from"),
    "file": ({"model__path": "DATA/train.jsonl"}, "train.jsonl: no such model; give a Hugging"),
    "folder": ({"model__path": "DATA"}, "config.json"),
}

# Whole flags instead of fields.
FLAGS = [
    (
        ["--config=configs/rm.py:tiny,sequence", "--config.model.head=state_action"],
        "model.head=state_action needs a token loss",
    ),
    (
        ["--config=configs/rm.py:llama_7b"],
        "model.path is empty, and random weights are for",
    ),
]

# For the two commands that use a reward model; INPUT is the field "test" of the one and "input" of
# the other, LM a language model, OUT an empty folder, EXT the suffix of the output.
USE = {
    "no folder": ({"reward_model": "nowhere"}, "nowhere: is not a reward model of launch."),
    "not ours": ({"reward_model": "LM"}, "lm: is not a reward model of launch.train_rm"),
    "not finished": ({"reward_model": "DATA"}, "is not a reward model of launch.train_rm"),
    "missing input": ({"INPUT": "nowhere.jsonl"}, "nowhere.jsonl: there is no such file"),
    "malformed input": ({"INPUT": "DATA/malformed.jsonl"}, "malformed.jsonl:3: malformed JSON"),
    "mesh": ({"mesh": "5,1,1"}, "mesh='5,1,1' makes 5 devices and there are 8"),
    "length": ({"max_length": 5}, "max_length"),
    "too long": (
        {"max_length": 257},
        "max_length=257 is more than the model's 256 positions; lower it",
    ),
    "missing folder": ({"output": "OUT/none/x.EXT"}, "none does not exist; make it"),
    "below a file": ({"output": "DATA/train.jsonl/x.EXT"}, "does not exist; make it"),
    "a folder": ({"output": "OUT/folder.EXT"}, "is a folder; give the name of a file"),
    "wrong suffix": ({"output": "OUT/x.txt"}, "output="),
}

# For launch.ppo: POLICY, TOKEN and SEQUENCE are a policy and two reward models, DATA a folder.
PPO = {
    # prompts
    "missing prompts": ({"prompts": "nowhere.jsonl"}, "nowhere.jsonl: there is no such file"),
    "missing validation": ({"validation": "no.jsonl"}, "no.jsonl: there is no such file"),
    "malformed prompts": ({"prompts": "DATA/malformed.jsonl"}, "malformed.jsonl:3: malformed"),
    "no prompts": ({"prompts": "DATA/empty.jsonl"}, "empty.jsonl: holds no rows"),
    "all too long": (
        {"data__max_prompt_length": 1},
        "train: all 40 prompts are longer than max_prompt_length 1; raise it, or set overlong=",
    ),
    "nothing to watch": (
        {"validation": "", "validation_share": 0.0},
        "none is left for validation",
    ),
    "fewer prompts than a rollout": (
        {"rollout_batch_size": 64},
        "rollout_batch_size=64 is more than the 40 prompts there are; lower it or give more",
    ),
    "too long for the model": (
        {"data__max_new_tokens": 64},
        "more than the model's 64 positions; lower data.max_new_tokens or",
    ),
    # models
    "no policy": ({"policy": "nowhere/at/all"}, "nowhere/at/all: no such model; give a "),
    "damaged policy": ({"policy": "DATA/damaged"}, "model.safetensors: is damaged"),
    "a reward model as policy": (
        {"policy": "TOKEN/export"},
        "these weights do not fit the model; missing: lm_head.weight",
    ),
    "missing reward model": (
        {"reward_model": "nowhere"},
        "nowhere: is not a reward model of launch.train_rm",
    ),
    "a policy as reward model": (
        {"reward_model": "POLICY"},
        "policy: is not a reward model of launch.train_rm",
    ),
    "unfinished reward model": (
        {"reward_model": "DATA"},
        "is not a reward model of launch.train_rm (no usable export/config.json)",
    ),
    "damaged reward model": ({"reward_model": "DATA/rm"}, "model.safetensors: is damaged"),
    "another tokenizer": (
        {"reward_model": "DATA/other"},
        "have different tokenizers (366 against 300 tokens, ",
    ),
    "another tokenizer, for the critic": (
        {"reward_model": "DATA/other", "reward_function": "fgrlhf_jax.tiny_world.judge:judge"},
        "have different tokenizers (366 against 300 tokens, ",
    ),
    "another end of sequence": (
        {"reward_model": "DATA/end"},
        "have different tokenizers (the end of sequence is '</s>' and '<s>')",
    ),
    "a model of sequences": (
        {"reward_model": "SEQUENCE"},
        "level=token: reward_model=SEQUENCE was trained with loss=sequence, which rewards every "
        "sequence; use --config=configs/ppo.py:MODEL,sequence or another reward model",
    ),
    "a model of tokens": (
        {"level": "sequence"},
        "level=sequence: reward_model=TOKEN was trained with loss=token_edit, which rewards every "
        "token; use --config=configs/ppo.py:MODEL,token",
    ),
    "another template": (
        {"data__template": "alpaca"},
        "data.template=alpaca: the reward model was trained with plain",
    ),
    "only prompts": (
        {"policy": "", "reward_model": ""},
        "policy and reward_model must be given too: --config.policy=",
    ),
    # functions
    "no function": ({"reward_function": "mine"}, "'mine': give a function as module:function"),
    "no module": (
        {"reward_function": "no_such_module:f"},
        "no_such_module:f: cannot be loaded (ModuleNotFoundError: ",
    ),
    "no judge": (
        {"judge": "fgrlhf_jax.tiny_world.judge:judg"},
        "fgrlhf_jax.tiny_world.judge:judg: cannot be loaded (AttributeError: ",
    ),
    # sizes, with 8 devices
    "batch over mesh": (
        {"minibatch_size": 4},
        "micro_batch_size=4 does not divide over data x fsdp = 8 devices",
    ),
    "micro-batches": (
        {"minibatch_size": 16, "micro_batch_size": 32, "rollout_batch_size": 32},
        "minibatch_size=16 is not a multiple of micro_batch_size=32",
    ),
    "batches": (
        {"rollout_batch_size": 24, "minibatch_size": 16, "micro_batch_size": 8},
        "rollout_batch_size=24 is not a multiple of minibatch_size=16",
    ),
    "a batch of more than a rollout": (
        {"rollout_batch_size": 8, "minibatch_size": 16, "micro_batch_size": 8},
        "rollout_batch_size=8 is not a multiple of minibatch_size=16",
    ),
    "mesh": ({"mesh": "3,1,1"}, "mesh='3,1,1' makes 3 devices and there are 8"),
    # fields
    "horizon": (
        {"kl__target": 2.0, "kl__horizon": 15},
        "kl.horizon=15 is less than the rollout_batch_size=16 responses of one step; raise it",
    ),
    "freeze nothing": ({"optimizer__freeze": "embedd$"}, "'embedd$' finds no parameter"),
    "freeze everything": ({"optimizer__freeze": "."}, "freeze='.' finds every parameter"),
}

PPO_FLAGS = [
    *(
        (
            f"--config=configs/ppo.py:{model}",
            "policy, reward_model and prompts are empty; give ",
        )
        for model in ("cad", "smollm2", "llama_7b")
    ),
    ("--config.validation=watched.jsonl", "policy, reward_model and prompts are empty; give "),
]

# For launch.sft.
SFT = {
    "edits": (
        {"train": "DATA/edits.jsonl"},
        "train: row 1: has no demonstration; give rows with instruction",
    ),
    "nothing to imitate": (
        {"train": "DATA/asked.jsonl"},
        "train: no demonstration is left of ",
    ),
    "too few": (
        {"batch_size": 64},
        "batch_size: 64 is more than the 40 rows there are; lower it or give more data.",
    ),
    "all too long": (
        {"data__max_length": 2, "data__max_prompt_length": 1, "data__overlong": "drop"},
        "train: no demonstration is left of 40: 0 have an empty output, the others are longer",
    ),
    "no room": (
        {"data__max_length": 16, "data__max_prompt_length": 16},
        "max_prompt_length: 16 must be above 0 and below max_length 16",
    ),
    "too long for the model": (
        {"data__max_length": 1024},
        "data.max_length=1024 is more than the model's 512 positions",
    ),
    "batch over mesh": (
        {"batch_size": 12},
        "micro_batch_size=12 does not divide over data x fsdp = 8 devices",
    ),
    "model": ({"model__path": "nowhere/at/all"}, "nowhere/at/all: no such model; give a "),
    "no train": ({"train": ""}, "train is empty; give --config.train=FILE"),
}

# For launch.generate; POLICY as above.
GENERATE = {
    "missing model": ({"model": "nowhere/at/all"}, "nowhere/at/all: no such model; give a "),
    "a reward model": ({"model": "TOKEN"}, "do not fit the model; missing: lm_head.weight"),
    "missing prompts": ({"prompts": "nowhere.jsonl"}, "nowhere.jsonl: there is no such file"),
    "all too long": (
        {"max_prompt_length": 1, "overlong": "drop"},
        "all 20 prompts are longer than max_prompt_length 1; raise it, or set overlong=",
    ),
    "too long for the model": (
        {"max_new_tokens": 64},
        "are more than the model's 64 positions",
    ),
    "missing folder": ({"output": "OUT/none/x.json"}, "none does not exist; make it"),
    "wrong suffix": ({"output": "OUT/x.csv"}, "x.csv: give a FILE.json"),
    "no chat template": ({"template": "chat"}, "the tokenizer has no chat template"),
    "mesh": ({"mesh": "3,1,1"}, "mesh='3,1,1' makes 3 devices and there are 8"),
}
