"""What a user may get wrong in PPO, SFT and generation: one sentence, exit status 2."""

import shutil
from pathlib import Path

import ppo_cases
import pytest
from bad_input_cases import fill

from fgrlhf_jax.data import records
from fgrlhf_jax.data.tokenizers import train_tokenizer
from fgrlhf_jax.runtime.files import write_jsonl
from fgrlhf_jax.tiny_world.datasets import make_feedback
from fgrlhf_jax.tiny_world.words import make_tokenizer
from launch import generate, ppo, sft

pytest_plugins = ["runs"]


@pytest.fixture(scope="module")
def data(world, tmp_path_factory) -> Path:
    """Files and folders that are no good, or not together."""
    folder = tmp_path_factory.mktemp("data")
    edits, _ = make_feedback(40, 0)
    asked = [records.Instruction(edit.instruction, "", "") for edit in edits]
    write_jsonl(folder / "asked.jsonl", asked)
    other, end = train_tokenizer([edit.original for edit in edits], 300), make_tokenizer()
    end.eos_token = "<s>"
    ppo_cases.save_reward_model(folder / "other", "token_edit", other)
    ppo_cases.save_reward_model(folder / "end", "token_edit", end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ppo_cases.DATA, "template", "chat")
        ppo_cases.save_reward_model(folder / "chat", "token_edit")
    ppo_cases.save_policy(folder / "alpaca", template="alpaca")
    ppo_cases.save_policy(folder / "untrained")
    for name, source in (("damaged", world.policy), ("rm", world.token / "export")):
        copy = shutil.copytree(source, folder / name) / "model.safetensors"
        weights = copy.read_bytes()
        copy.write_bytes(weights[: len(weights) // 2])
    return folder


def nothing_written(folder: Path) -> bool:
    """No row, no checkpoint and no export: only what a start leaves that came to nothing."""
    return not [
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name != "config.json" and path.stat().st_size
    ]


# Of launch.ppo. POLICY, TOKEN and SEQUENCE are a policy and two reward models, DATA a folder; there
# are 8 devices.
RM = "is not a reward model of launch.train_rm"
TOKENIZERS = "have different tokenizers (366 against 300 tokens, "
JUDGE = "fgrlhf_jax.tiny_world.judge:judge"
PPO = [
    ({"prompts": "nowhere.jsonl"}, "nowhere.jsonl: there is no such file"),
    ({"data__max_prompt_length": 1}, "train: max_prompt_length=1: the template 'plain' alone has"),
    ({"rollout_batch_size": 64}, "rollout_batch_size=64 is more than the 40 prompts there are; "),
    ({"data__max_new_tokens": 64}, "the model's 64 positions; lower data.max_new_tokens or"),
    # models
    ({"policy": "nowhere/at/all"}, "nowhere/at/all: no such model; give a "),
    ({"policy": "DATA/damaged"}, "model.safetensors: is damaged"),
    ({"policy": "TOKEN/export"}, "is a reward model (LlamaForTokenClassification), and a"),
    ({"reward_model": "POLICY"}, f"policy: {RM}"),
    ({"reward_model": "DATA"}, f"{RM} (no usable export/config.json)"),
    ({"reward_model": "DATA/rm"}, "model.safetensors: is damaged"),
    ({"reward_model": "DATA/other"}, TOKENIZERS),
    ({"reward_model": "DATA/other", "reward_function": JUDGE}, TOKENIZERS),
    ({"reward_model": "DATA/end"}, "tokenizers (the end of sequence is '</s>' and '<s>')"),
    ({"reward_model": "SEQUENCE"}, "was trained with loss=sequence, which rewards every sequ"),
    ({"level": "sequence"}, "was trained with loss=token_edit, which rewards every token"),
    ({"data__template": "alpaca"}, "template=alpaca: the reward model was trained with plain"),
    ({"policy": "DATA/alpaca"}, "with the template alpaca, the reward model with plain; train"),
    ({"policy": "DATA/untrained", "reward_model": "DATA/chat"}, "copy chat_template.jinja"),
    ({"policy": "", "reward_model": ""}, "policy and reward_model must be given too: --config."),
    # functions
    ({"reward_function": "nowhere:f"}, "nowhere:f: cannot be loaded (ModuleNotFoundError: "),
    ({"judge": JUDGE[:-1]}, "judge:judg: cannot be loaded (AttributeError: "),
    # sizes
    ({"minibatch_size": 4}, "micro_batch_size=4 does not divide over data x fsdp = 8 devices"),
    ({"minibatch_size": 16, "micro_batch_size": 32}, "16 is not a multiple of micro_batch_size=32"),
    ({"rollout_batch_size": 24, "minibatch_size": 16}, "24 is not a multiple of minibatch_size=16"),
    ({"algorithm": "rloo", "samples_per_prompt": 1}, "samples_per_prompt=1: algorithm=rloo"),
    ({"algorithm": "grpo", "critic": "shared"}, "critic=shared: algorithm=grpo has no critic"),
    ({"ptx_weight": 1.0}, "ptx_weight=1 and ptx_edits='': imitation needs a weight above 0"),
    ({"ptx_weight": 1.0, "ptx_edits": "edits.jsonl"}, "edits.jsonl: there is no such file"),
    ({"samples_per_prompt": 3}, "rollout_batch_size=16 is not a multiple of samples_per_prompt=3"),
    ({"algorithm": "grpo", "rollout_batch_size": 192, "kl__target": 0.0}, "there are, 4 times"),
    ({"generation_mesh": "1,1,4"}, "generation_mesh='1,1,4': give data,fsdp,tensor as three siz"),
    ({"kl__target": 2.0, "kl__horizon": 15}, "kl.horizon=15 is less than the rollout_batch_size"),
    ({"kl__target": 2.0, "kl__coef": 0.0}, "kl.coef=0, kl.in_reward=True leave none"),
    ({"kl__target": 2.0, "kl__in_reward": False}, "kl.in_reward=False leave none"),
    ({"optimizer__freeze": "embedd$"}, "'embedd$' finds no parameter"),
    ({"inference_dtype": "bfloat16"}, "would round the reference, which the policy with"),
]
SFT = [
    ({"data__template": "chat"}, "give --config.data.template=alpaca (or plain), or copy chat_te"),
    ({"train": "DATA/asked.jsonl"}, "train: no demonstration is left of "),
    ({"data__max_length": 3, "data__max_prompt_length": 2, "data__overlong": "drop"}, "left of 40"),
]
GENERATE = [
    ({"model": "TOKEN"}, "is a reward model (LlamaForTokenClassification), and a language model"),
    ({"max_prompt_length": 2, "overlong": "drop"}, "all 20 prompts are longer than max_prompt"),
    ({"max_new_tokens": 64}, "leaves no room for a prompt in the model's 64 positions"),
    ({"output": "OUT/none/x.json"}, "none does not exist; create it"),
    ({"output": "OUT/x.csv"}, "x.csv: give a FILE.json"),
]
CASES = [(ppo, *row) for row in PPO] + [(sft, *row) for row in SFT]
CASES += [(generate, *row) for row in GENERATE]


@pytest.mark.parametrize(("module", "changes", "message"), CASES)
def test_refused(refused, world, data, tmp_path, module, changes, message):
    words = {"DATA": data, "POLICY": world.policy, "TOKEN": world.token, "OUT": tmp_path}
    words["SEQUENCE"] = world.sequence
    changes = {name: fill(value, words) for name, value in changes.items()}
    usual = ppo_cases.fields(world, tmp_path / "run", micro_batch_size=0)
    if module is sft:
        usual = {"train": world.prompts, "validation": world.validation, "batch_size": 8}
        usual |= {"run_dir": tmp_path / "run", "model__vocab_size": 300, "data__max_length": 256}
    if module is generate:
        usual = {"model": world.policy, "prompts": world.validation, "max_new_tokens": 6}
        usual |= {"output": tmp_path / "out.json"}
    sentence = refused(module, **usual | changes)
    assert message in sentence
    assert nothing_written(tmp_path)
    late = "damaged" in sentence or "do not fit" in sentence  # seen where weights are read
    assert late or list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--config=configs/ppo.py:cad", "--config.validation=a.jsonl"])
def test_no_paths_but_not_the_embedded_world(refused, tmp_path, flag):
    sentence = refused(ppo, flag, run_dir=tmp_path / "run")
    assert "policy, reward_model and prompts are empty; give " in sentence
    assert list(tmp_path.iterdir()) == []


# Functions of the user's, with one device


@pytest.fixture
def fields(in_process, world, tmp_path) -> dict:
    return ppo_cases.fields(world, tmp_path / "run", **ppo_cases.FUNCTION)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "pay", "message"),
    [
        ({}, [1.0] * 7, "mine:pay: response 1 of 16: returned 7 rewards for "),
        ({"judge": "mine:judge"}, 1.0, "mine:judge: response 1 of 16: returned a list; return"),
        ({"algorithm": "grpo", "critic": "separate"}, 1.0, "mine:pay: returned one number a"),
    ],
)
def test_functions_that_return_something_else(refused, fields, mine, tmp_path, other, pay, message):
    mine.pay = lambda prompts, responses: [pay] * len(responses)
    mine.judge = lambda prompts, responses, tokens: [[1.0] * len(row) for row in tokens]
    assert refused(ppo, **fields | other).startswith(message)
    assert nothing_written(tmp_path)
