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
    "template": ({"data__template": "chatty"}, "template: 'chatty' is not one of alpaca, chat"),
    "no chat template": ({"data__template": "chat"}, "the tokenizer has no chat template"),
    # flags
    "typo": ({"step": 3}, "--config.step: there is no such field; did you mean steps?"),
    "nested typo": (
        {"optimizer__learning_rat": 1},
        "--config.optimizer.learning_rat: there is no such field; "
        "did you mean optimizer.learning_rate?",
    ),
    "without its group": (
        {"learning_rate": 1},
        "--config.learning_rate: there is no such field; did you mean optimizer.learning_rate?",
    ),
    "a group": (
        {"model": "tiny"},
        "--config.model: there is no such field; did you mean model.",
    ),
    "like nothing": (
        {"xyz": 1},
        "--config.xyz: there is no such field; there are batch_size, ",
    ),
    "no number": ({"steps": "many"}, "--config.steps=many: invalid literal for int()"),
    "half a number": ({"seed": 1.5}, "--config.seed=1.5: invalid literal for int()"),
    "no real number": (
        {"optimizer__learning_rate": "fast"},
        "--config.optimizer.learning_rate=fast: could not convert string to float",
    ),
    "neither true nor false": ({"model__remat": "maybe"}, "--config.model.remat=maybe: "),
    # values
    "loss": (
        {"loss": "tokens"},
        "loss='tokens' is not one of token_edit, token_full, sequence",
    ),
    "select": ({"best_metric": "f1"}, "best_metric='f1' is not one of loss, accuracy"),
    "dtype": ({"model__dtype": "float99"}, "model.dtype='float99' is not one of float32, bf"),
    "head": (
        {"model__head": "before"},
        "model.head='before' is not one of after, state_action",
    ),
    "attention": ({"model__attention": "fast"}, "model.attention='fast' is not one of auto, "),
    "size": ({"model__size": "huge"}, "random weights are for model.size=tiny or small only"),
    "schedule": ({"optimizer__schedule": "step"}, "schedule='step' is not one of constant, "),
    "no batch": ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    "negative": ({"micro_batch_size": -8}, "micro_batch_size=-8 must be at least 0"),
    "seed": ({"seed": -1}, "seed=-1 must be at least 0"),
    "no bucket": ({"data__smallest_bucket": 0}, "data.smallest_bucket=0 must be at least 1"),
    "not a number": (
        {"optimizer__learning_rate": "nan"},
        "learning_rate=nan must be at least 0",
    ),
    "freeze": ({"optimizer__freeze": "("}, "optimizer.freeze='(': is no regular expression"),
    "freeze nothing": ({"optimizer__freeze": "embedd$"}, "'embedd$' finds no parameter"),
    "freeze everything": ({"optimizer__freeze": "."}, "freeze='.' finds every parameter"),
    "no run_dir": ({"run_dir": ""}, "run_dir is empty; give --config.run_dir=FOLDER"),
    "tiny vocabulary": ({"model__vocab_size": 9}, "vocab_size: 9 is too small"),
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
    (["--config=configs/rm.py:tinny"], "model 'tinny' is not one of tiny, cad, smollm2"),
    (["--config=configs/rm.py:tiny,edit"], "loss 'edit' is not one of token_edit, token_"),
    (["--config=configs/none.py"], "--config=configs/none.py: there is no such file"),
    (["--config"], "there is no such file"),
    (["--config=configs/base.py"], "configs/base.py: is no usable config"),
    (["--confg=configs/rm.py"], "Unknown command line flag 'confg'. Did you mean: config"),
    (["steps=3"], "'steps=3' is not a flag; write --config.FIELD=VALUE"),
    (["--config.steps"], "Missing value for flag --config.steps"),
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
    "typo": (
        {"batchsize": 3},
        "--config.batchsize: there is no such field; did you mean batch_",
    ),
    "batch": ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    "dtype": ({"dtype": "float99"}, "dtype='float99' is not one of float32, bfloat16"),
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
    "typo": ({"step": 3}, "--config.step: there is no such field; did you mean steps?"),
    "nested typo": (
        {"kl__coeff": 1},
        "--config.kl.coeff: there is no such field; did you mean kl.coef?",
    ),
    "level": ({"level": "word"}, "level='word' is not one of token, sequence"),
    "critic": ({"critic": "own"}, "critic='own' is not one of separate, shared"),
    "select": ({"best_metric": "best"}, "best_metric='best' is not one of last, score"),
    "estimator": ({"kl__estimator": "k2"}, "kl.estimator='k2' is not one of k1, k3, k1_clip"),
    "missing end": ({"missing_eos": "add"}, "missing_eos='add' is not one of none, replace, "),
    "template": ({"data__template": "chatty"}, "data.template='chatty' is not one of , alpaca"),
    "overlong": ({"data__overlong": "cut"}, "data.overlong='cut' is not one of drop, truncate"),
    "dtype": (
        {"inference_dtype": "int8"},
        "inference_dtype='int8' is not one of float32, bfloat16",
    ),
    "schedule": ({"optimizer__schedule": "step"}, "schedule='step' is not one of constant, "),
    "no temperature": (
        {"sampling__temperature": 0.0},
        "sampling.temperature=0.0 must be at least 1e-06",
    ),
    "no steps": ({"steps": 0}, "steps=0 must be at least 1"),
    "horizon": (
        {"kl__target": 2.0, "kl__horizon": 15},
        "kl.horizon=15 is less than the rollout_batch_size=16 responses of one step; raise it",
    ),
    "no room": ({"data__max_new_tokens": 0}, "data.max_new_tokens=0 must be at least 1"),
    "negative": ({"kl__coef": -0.1}, "kl.coef=-0.1 must be at least 0"),
    "not a number": ({"gamma": "nan"}, "gamma=nan must be at least 0"),
    "critic's rate": (
        {"optimizer__critic_learning_rate": "nan"},
        "optimizer.critic_learning_rate=nan must be at least 0",
    ),
    "freeze": ({"optimizer__freeze": "("}, "optimizer.freeze='(': is no regular expression"),
    "freeze nothing": ({"optimizer__freeze": "embedd$"}, "'embedd$' finds no parameter"),
    "freeze everything": ({"optimizer__freeze": "."}, "freeze='.' finds every parameter"),
    "no run_dir": ({"run_dir": ""}, "run_dir is empty; give --config.run_dir=FOLDER"),
}

PPO_FLAGS = [
    ("--config=configs/ppo.py:tinny", "model 'tinny' is not one of tiny, cad, smollm2, lla"),
    ("--config=configs/ppo.py:tiny,word", "level 'word' is not one of token, sequence"),
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
    "overlong": ({"data__overlong": "cut"}, "overlong: 'cut' is neither 'drop' nor 'truncate'"),
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
    "size": ({"model__size": "huge"}, "random weights are for model.size=tiny or small only"),
    "select": ({"best_metric": "f1"}, "best_metric='f1' is not one of loss, accuracy"),
    "typo": (
        {"optimizer__learning_rat": 1},
        "--config.optimizer.learning_rat: there is no such field; did you mean optimizer.",
    ),
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
    "more than everything": ({"top_p": 1.1}, "top_p=1.1 must be at most 1"),
    "missing folder": ({"output": "OUT/none/x.json"}, "none does not exist; make it"),
    "wrong suffix": ({"output": "OUT/x.csv"}, "x.csv: give a FILE.json"),
    "typo": ({"temprature": 1}, "there is no such field; did you mean temperature?"),
    "temperature": ({"temperature": -1.0}, "temperature=-1.0 must be at least 0"),
    "no mass": ({"top_p": 0.0}, "top_p=0.0 must be at least 1e-06"),
    "template": ({"template": "chatty"}, "template='chatty' is not one of , alpaca, chat, pl"),
    "no chat template": ({"template": "chat"}, "the tokenizer has no chat template"),
    "mesh": ({"mesh": "3,1,1"}, "mesh='3,1,1' makes 3 devices and there are 8"),
}
