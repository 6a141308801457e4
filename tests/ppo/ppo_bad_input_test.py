"""What a user may get wrong in PPO, SFT and generation: one sentence, exit status 2."""

import shutil
from pathlib import Path

import bad_input_cases
import ppo_cases
import pytest
from bad_input_cases import error_sentence, fill

from fgrlhf_jax.data import records
from fgrlhf_jax.data.tokenizers import train_tokenizer
from fgrlhf_jax.runtime.files import write_jsonl
from fgrlhf_jax.tiny_world.datasets import make_feedback
from fgrlhf_jax.tiny_world.words import make_tokenizer
from launch import generate, ppo, sft

pytest_plugins = ["runs"]


@pytest.fixture(scope="module")
def data(world, tmp_path_factory) -> Path:
    """Files and folders that are no good."""
    folder = tmp_path_factory.mktemp("data")
    edits, _ = make_feedback(40, 0)
    asked = [records.Instruction(edit.instruction, "", "") for edit in edits]
    write_jsonl(folder / "asked.jsonl", asked)
    other = train_tokenizer([edit.original for edit in edits], 300)
    ppo_cases.save_reward_model(folder / "other", "token_edit", other)
    end = make_tokenizer()
    end.eos_token = "<s>"
    ppo_cases.save_reward_model(folder / "end", "token_edit", end)
    for name, source in (("damaged", world.policy), ("rm", world.token / "export")):
        copy = shutil.copytree(source, folder / name) / "model.safetensors"
        weights = copy.read_bytes()
        copy.write_bytes(weights[: len(weights) // 2])
    return folder


@pytest.fixture
def launch(monkeypatch, capsys, world, data, tmp_path):
    """Run a command on fields and flags with the words of the tables: (its sentence, theirs)."""
    stands = {
        "DATA": data,
        "POLICY": world.policy,
        "TOKEN": world.token,
        "SEQUENCE": world.sequence,
        "OUT": tmp_path,
    }

    def launch(module, fields: dict, message: str, *flags: str) -> tuple[str, str]:
        fields = {name: fill(value, stands) for name, value in fields.items()}
        result = bad_input_cases.run(monkeypatch, capsys, module, *flags, **fields)
        return error_sentence(result), fill(message, stands)

    return launch


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
    (
        {"rollout_batch_size": 64},
        "rollout_batch_size=64 is more than the 40 prompts there are; lower it or give more",
    ),
    ({"data__max_new_tokens": 64}, "the model's 64 positions; lower data.max_new_tokens or"),
    # models
    ({"policy": "nowhere/at/all"}, "nowhere/at/all: no such model; give a "),
    ({"policy": "DATA/damaged"}, "model.safetensors: is damaged"),
    (
        {"policy": "TOKEN/export"},
        "is a reward model (LlamaForTokenClassification), and a language model is expected",
    ),
    ({"reward_model": "POLICY"}, f"policy: {RM}"),
    ({"reward_model": "DATA"}, f"{RM} (no usable export/config.json)"),
    ({"reward_model": "DATA/rm"}, "model.safetensors: is damaged"),
    ({"reward_model": "DATA/other"}, TOKENIZERS),
    ({"reward_model": "DATA/other", "reward_function": JUDGE}, TOKENIZERS),
    ({"reward_model": "DATA/end"}, "tokenizers (the end of sequence is '</s>' and '<s>')"),
    (
        {"reward_model": "SEQUENCE"},
        "level=token: reward_model=SEQUENCE was trained with loss=sequence, which rewards every "
        "sequence; use --config=configs/ppo.py:MODEL,sequence or another reward model",
    ),
    (
        {"level": "sequence"},
        "level=sequence: reward_model=TOKEN was trained with loss=token_edit, which rewards every "
        "token; use --config=configs/ppo.py:MODEL,token",
    ),
    ({"data__template": "alpaca"}, "template=alpaca: the reward model was trained with plain"),
    ({"policy": "", "reward_model": ""}, "policy and reward_model must be given too: --config."),
    # functions
    ({"reward_function": "nowhere:f"}, "nowhere:f: cannot be loaded (ModuleNotFoundError: "),
    ({"judge": JUDGE[:-1]}, "judge:judg: cannot be loaded (AttributeError: "),
    # sizes
    ({"minibatch_size": 4}, "micro_batch_size=4 does not divide over data x fsdp = 8 devices"),
    (
        {"minibatch_size": 16, "micro_batch_size": 32, "rollout_batch_size": 32},
        "minibatch_size=16 is not a multiple of micro_batch_size=32",
    ),
    (
        {"rollout_batch_size": 24, "minibatch_size": 16, "micro_batch_size": 8},
        "rollout_batch_size=24 is not a multiple of minibatch_size=16",
    ),
    (
        {"algorithm": "rloo", "samples_per_prompt": 1},
        "samples_per_prompt=1: algorithm=rloo compares the samples of a prompt; give at least 2",
    ),
    (
        {"algorithm": "grpo", "critic": "shared"},
        "critic=shared: algorithm=grpo has no critic; drop",
    ),
    ({"ptx_weight": 1.0}, "ptx_weight=1 and ptx_edits='': imitating needs both, a weight above 0"),
    ({"ptx_weight": 1.0, "ptx_edits": "edits.jsonl"}, "edits.jsonl: there is no such file"),
    ({"samples_per_prompt": 3}, "rollout_batch_size=16 is not a multiple of samples_per_prompt=3"),
    (
        {"algorithm": "grpo", "rollout_batch_size": 192, "kl__target": 0.0},
        "rollout_batch_size=192 is more than the 40 prompts there are, 4 times each; lower it or",
    ),
    ({"generation_mesh": "1,1,4"}, "generation_mesh='1,1,4' makes 4 devices and there are 8; ch"),
    (
        {"kl__target": 2.0, "kl__horizon": 15},
        "kl.horizon=15 is less than the rollout_batch_size=16 responses of one step; raise it",
    ),
    ({"optimizer__freeze": "embedd$"}, "'embedd$' finds no parameter"),
    (
        {"inference_dtype": "bfloat16"},
        "inference_dtype=bfloat16: would round the reference, which the policy with "
        "model.dtype=float32 is compared with; give --config.model.dtype=bfloat16 too",
    ),
]


@pytest.mark.parametrize(("changes", "message"), PPO)
def test_ppo(launch, world, tmp_path, changes, message):
    usual = ppo_cases.fields(world, tmp_path / "run", micro_batch_size=0)
    sentence, message = launch(ppo, usual | changes, message)
    assert message in sentence
    assert nothing_written(tmp_path)
    late = "damaged" in sentence or "do not fit" in sentence  # seen where weights are read
    assert late or list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "flag", ["--config=configs/ppo.py:cad", "--config.validation=watched.jsonl"]
)
def test_no_paths_but_not_the_embedded_world(launch, tmp_path, flag):
    sentence, _ = launch(ppo, {"run_dir": tmp_path / "run"}, "", flag)
    assert "policy, reward_model and prompts are empty; give " in sentence
    assert list(tmp_path.iterdir()) == []


def test_a_policy_and_a_reward_model_of_different_templates(launch, world, tmp_path):
    policy = ppo_cases.save_policy(tmp_path / "policy", template="alpaca")
    usual = ppo_cases.fields(world, tmp_path / "run", policy=policy, micro_batch_size=0)
    sentence, _ = launch(ppo, usual, "")
    assert "fine-tuned with the template alpaca, the reward model with plain; train" in sentence
    assert "give data.template=plain if this is meant" in sentence
    assert not (tmp_path / "run").exists()


def test_a_reward_model_with_a_chat_template_that_the_policy_lacks(
    launch, world, tmp_path, monkeypatch
):
    policy = ppo_cases.save_policy(tmp_path / "policy")
    with monkeypatch.context() as patch:
        patch.setitem(ppo_cases.DATA, "template", "chat")
        rewards = ppo_cases.save_reward_model(tmp_path / "rm", "token_edit")
    usual = ppo_cases.fields(world, tmp_path / "run", policy=policy, micro_batch_size=0)
    sentence, _ = launch(ppo, usual | {"reward_model": rewards}, "")
    assert "copy chat_template.jinja from the reward model's export into the policy's" in sentence


SFT = [
    ({"data__template": "chat"}, "give --config.data.template=alpaca (or plain), or copy chat_te"),
    ({"train": "DATA/asked.jsonl"}, "train: no demonstration is left of "),
    (
        {"data__max_length": 3, "data__max_prompt_length": 2, "data__overlong": "drop"},
        "train: no demonstration is left of 40: 0 have an empty output or none, the others are",
    ),
]


@pytest.mark.parametrize(("changes", "message"), SFT)
def test_sft(launch, world, tmp_path, changes, message):
    usual = {
        "train": world.prompts,  # with demonstrations
        "validation": world.validation,
        "run_dir": tmp_path / "run",
        "steps": 4,
        "batch_size": 8,
        "model__vocab_size": 300,
        "data__max_length": 256,
    }
    sentence, message = launch(sft, usual | changes, message)
    assert message in sentence
    assert list(tmp_path.iterdir()) == []


GENERATE = [
    ({"model": "TOKEN"}, "is a reward model (LlamaForTokenClassification), and a language model"),
    (
        {"max_prompt_length": 2, "overlong": "drop"},
        "all 20 prompts are longer than max_prompt_length 2; raise it, or set overlong=",
    ),
    ({"max_new_tokens": 64}, "leaves no room for a prompt in the model's 64 positions"),
    ({"output": "OUT/none/x.json"}, "none does not exist; make it"),
    ({"output": "OUT/x.csv"}, "x.csv: give a FILE.json"),
]


@pytest.mark.parametrize(("changes", "message"), GENERATE)
def test_generate(launch, world, tmp_path, changes, message):
    usual = {
        "model": world.policy,
        "prompts": world.validation,
        "output": tmp_path / "out.json",
        "max_new_tokens": 6,
    }
    sentence, message = launch(generate, usual | changes, message)
    assert message in sentence
    assert list(tmp_path.iterdir()) == []


# Functions of the user's, with one device


@pytest.fixture
def fields(in_process, world, tmp_path) -> dict:
    return ppo_cases.fields(world, tmp_path / "run", **ppo_cases.FUNCTION)


@pytest.mark.slow
def test_a_reward_function_with_one_list_for_all(launch, fields, mine, tmp_path):
    mine.pay = lambda prompts, responses: [[1.0] * 7 for _ in responses]
    sentence, _ = launch(ppo, fields, "")
    assert sentence.startswith("mine:pay: response 1 of 16: returned 7 rewards for ")
    assert nothing_written(tmp_path)


@pytest.mark.slow
def test_a_judge_that_scores_every_token(launch, fields, mine, tmp_path):
    mine.pay = lambda prompts, responses: [1.0] * len(responses)
    mine.judge = lambda prompts, responses, tokens: [[1.0] * len(row) for row in tokens]
    sentence, _ = launch(ppo, fields | {"judge": "mine:judge"}, "")
    assert sentence == "mine:judge: response 1 of 16: returned a list; return one number"
    assert nothing_written(tmp_path)
