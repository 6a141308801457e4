"""What a user may get wrong, through the commands: one sentence, exit status 2, nothing written."""

import json
import re
import shutil
import sys
from pathlib import Path

import bad_input_cases
import jax
import pytest
import tiny_cases
from bad_input_cases import contents, filled, only

from fgrlhf_jax.data import records
from fgrlhf_jax.data.tokenizers import train_tokenizer
from fgrlhf_jax.models import hf_load, llama
from fgrlhf_jax.reward_model import model as reward
from fgrlhf_jax.reward_model.scorer import RewardMeta, RewardModel, make_module
from fgrlhf_jax.runtime import sharding
from fgrlhf_jax.runtime.files import write_json, write_jsonl
from fgrlhf_jax.tiny_world.datasets import make_feedback
from launch import evaluate_rm, score, train_rm
from launch.shared import cli

DEFAULTS = {
    train_rm: "configs/rm.py:tiny,token_edit",
    evaluate_rm: "configs/evaluate_rm.py",
    score: "configs/score.py",
}
CFG = llama.LlamaConfig(300, 16, 32, 1, 2, 1, 8, max_position=256)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder with files of every kind of record."""
    folder = tmp_path_factory.mktemp("data")
    edits, preferences = make_feedback(60, 0)
    rows = {
        "train": edits[:48],
        "validation": edits[48:] + preferences[48:],
        "instructions": [records.Instruction("say hello", "", "hello")] * 9,
        "prompts": [records.Instruction("say hello", "", "")],
    }
    for name, some in rows.items():
        write_jsonl(folder / f"{name}.jsonl", some)
    lines = (folder / "train.jsonl").read_text().splitlines()
    (folder / "malformed.jsonl").write_text("\n".join([*lines[:2], lines[2][:-1], *lines[3:]]))
    (folder / "empty.jsonl").touch()
    return folder


@pytest.fixture(scope="module")
def tokenizer(data):
    rows = records.read(str(data / "train.jsonl"))
    texts = [text for row in rows for text in (row.instruction, row.original, row.edited)]
    return train_tokenizer(texts, CFG.vocab_size)


@pytest.fixture(scope="module")
def checkpoint(tokenizer, tmp_path_factory) -> Path:
    """A Hugging Face folder of a language model with random weights."""
    folder = tmp_path_factory.mktemp("models") / "lm"
    params = tiny_cases.parameters(llama.CausalLM(CFG))
    hf_load.save(folder, params, CFG, tokenizer, architecture=hf_load.LANGUAGE_MODEL)
    return folder


@pytest.fixture(scope="module")
def reward_model(tokenizer, tmp_path_factory) -> Path:
    """What a finished run leaves for launch.evaluate_rm and launch.score."""
    folder = tmp_path_factory.mktemp("models") / "rm"
    model = make_module(CFG, "token_edit", "after")
    meta = RewardMeta(
        "after",
        {"loss": "token_edit", "consistency_weight": 0.0, "center_weight": 0.3},
        reward.Normalization(0.0, 1.0),
        {
            "template": "plain",
            "max_length": 128,
            "max_prompt_length": 64,
            "overlong": "truncate",
            "alignment": "levenshtein",
            "append_eos": True,
        },
    )
    mesh = sharding.make_mesh("1,-1,1")
    reward_model = RewardModel(model, tiny_cases.parameters(model), tokenizer, meta, mesh)
    reward_model.save(folder / "export")
    return folder


@pytest.fixture
def launch(monkeypatch, capsys):
    """Run a command on fields and flags; returns its exit status and the lines on stderr."""

    def launch(module, *flags: str, **fields) -> tuple[int, list[str]]:
        return bad_input_cases.launch(
            monkeypatch, capsys, module, DEFAULTS[module], *flags, **fields
        )

    return launch


@pytest.fixture
def train(launch, data, tmp_path):
    """Run launch.train_rm on small files in a folder of its own."""

    def train(*flags: str, **fields) -> tuple[int, list[str]]:
        usual = {
            "train": data / "train.jsonl",
            "validation": data / "validation.jsonl",
            "run_dir": tmp_path / "run",
            "steps": 4,
            "batch_size": 8,
            "model__vocab_size": 300,
            "data__smallest_bucket": 128,
        }
        return launch(train_rm, *flags, **(usual | fields))

    return train


# Fields of launch.train_rm ("__" for the dots) and a part of the sentence; DATA has files of every
# kind, and there are 8 devices.
TRAIN = [
    ({"train": "nowhere.jsonl"}, "nowhere.jsonl: there is no such file"),
    ({"validation": "no.jsonl"}, "no.jsonl: there is no such file"),
    ({"train": "DATA/malformed.jsonl"}, "malformed.jsonl:3: malformed JSON"),
    ({"train": "DATA/empty.jsonl"}, "empty.jsonl: holds no rows"),
    ({"train": "DATA/instructions.jsonl"}, "train: holds instructions"),
    ({"validation": "DATA/instructions.jsonl"}, "validation: holds instructions"),
    ({"batch_size": 64}, "batch_size: 64 is more than the 48 rows there are"),
    ({"train": ""}, "train is empty; give --config.train=FILE"),
    ({"validation": "", "validation_share": 0.0}, "none is left for validation"),
    ({"data__max_length": 64}, "max_prompt_length: 64 must be above 0 and below max_length 64"),
    ({"data__max_length": 1024}, "data.max_length=1024 is more than the model's 512 positions"),
    ({"data__template": "chat"}, "the tokenizer has no chat template"),
    ({"optimizer__freeze": "("}, "optimizer.freeze='(': is no regular expression"),
    ({"optimizer__freeze": "embedd$"}, "'embedd$' finds no parameter"),
    ({"optimizer__freeze": "."}, "freeze='.' finds every parameter"),
    ({"run_dir": ""}, "run_dir is empty; give --config.run_dir=FOLDER"),
    ({"mesh": "3,1,1"}, "mesh='3,1,1' makes 3 devices and there are 8"),
    ({"mesh": "8,1"}, "mesh='8,1': give data,fsdp,tensor as three sizes"),
    ({"mesh": "all"}, "mesh='all': give data,fsdp,tensor as three sizes"),
    ({"batch_size": 12}, "micro_batch_size=12 does not divide over data x fsdp = 8 devices"),
    (
        {"micro_batch_size": 16, "batch_size": 24},
        "batch_size=24 is not a multiple of micro_batch_size=16",
    ),
    ({"model__path": "nowhere/at/all"}, "nowhere/at/all: no such model; give a "),
    ({"model__path": "no/model"}, "no/model: neither a local folder nor to be had from"),
    ({"model__path": "DATA/train.jsonl"}, "train.jsonl: no such model; give a Hugging"),
    ({"model__path": "DATA"}, "config.json"),
    ({"model__size": "llama_7b"}, "model.path is empty, and random weights are for"),
    (
        {"loss": "sequence", "model__head": "state_action"},
        "head=state_action needs a token loss",
    ),
]


@pytest.mark.parametrize(("fields", "says"), TRAIN)
def test_training(train, data, tmp_path, fields, says):
    fields = {k: filled(v, {"DATA": data}) for k, v in fields.items()}
    assert says in only(train(**fields))
    assert list(tmp_path.iterdir()) == []


def test_no_train_for_a_model_that_makes_no_data(launch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "train is empty" in only(launch(train_rm, "--config=configs/rm.py:cad"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_run_dir_that_cannot_be_written(train, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    assert re.match(
        rf"run_dir={tmp_path}/{place} cannot be written \(.*\); choose another folder",
        only(train(run_dir=tmp_path / place)),
    )
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("trace", ["metrics.jsonl", "checkpoints/5/loop"])
def test_run_dir_of_another_config(train, data, tmp_path, trace):
    """Every field that differs is named, with both values; what only watches may differ."""
    run_dir = tmp_path / "run"
    (run_dir / trace).parent.mkdir(parents=True)
    (run_dir / trace).touch()
    config = cli.parse(
        ["", f"--config.train={data / 'train.jsonl'}", "--config.optimizer.b1=0.5"],
        DEFAULTS[train_rm],
    )
    write_json(run_dir / "config.json", json.loads(config.to_json()))
    before = contents(tmp_path)
    sentence = only(train(steps=5, optimizer__b1=0.25, save_every=3, max_to_keep=9))
    assert sentence.startswith(f"run_dir={run_dir} holds a run of another config: ")
    assert "optimizer.b1 (there 0.5, now 0.25)" in sentence
    assert f"steps (there {config.steps}, now 5)" in sentence
    for same in ("seed", "train", "save_every", "max_to_keep", "run_dir"):
        assert f", {same} (" not in sentence
    assert "choose another run_dir" in sentence
    assert contents(tmp_path) == before


def test_run_dir_of_a_version_with_other_names(train, data, tmp_path):
    run_dir = tmp_path / "run"
    (run_dir / "checkpoints" / "5").mkdir(parents=True)
    config = cli.parse(["", f"--config.train={data / 'train.jsonl'}"], DEFAULTS[train_rm])
    fields = json.loads(config.to_json())
    fields |= {"keep": fields.pop("max_to_keep"), "select": fields.pop("best_metric")}
    write_json(run_dir / "config.json", fields)
    assert "select is now best_metric, keep is now max_to_keep" in only(train(run_dir=run_dir))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", r"run/config.json: is not JSON \(.*\); choose another run_dir"),
        ('{"vocab_size": 3}', "run/config.json: is not of a run of ours; choose another"),
    ],
)
def test_run_dir_of_something_else(train, tmp_path, text, says):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(text)
    assert re.search(says, only(train()))
    assert contents(tmp_path) == {str(tmp_path / "run" / "config.json"): text.encode()}


def changed(folder: Path, file: str, change) -> Path:
    """``folder`` with one file changed."""
    (folder / file).write_bytes(change((folder / file).read_bytes()))
    return folder


def flip(content: bytes) -> bytes:
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def fields(**given):
    return lambda content: json.dumps(json.loads(content) | given).encode()


MODELS = {
    "another architecture": (
        "config.json",
        fields(model_type="gpt2"),
        "config.json: model_type is 'gpt2'; only LLaMA-like models can be read",
    ),
    "vocabulary larger than the embedding": (
        "config.json",
        fields(vocab_size=280),
        "tokenizer: its 300 ids do not fit the model's vocabulary of 280",
    ),
    "no EOS": (
        "tokenizer_config.json",
        fields(eos_token=None),
        "lm: the tokenizer has no EOS token; set eos_token in its config",
    ),
    "a flipped byte": ("model.safetensors", flip, "model.safetensors: is damaged"),
    "cut short": ("model.safetensors", half, "model.safetensors: is damaged"),
    "half a config": ("config.json", half, "config.json: is not readable JSON"),
    "another width": (
        "config.json",
        fields(intermediate_size=48),
        "lm: these weights do not fit the model; misshapen: model.layers.0.mlp",
    ),
}


@pytest.mark.parametrize(("file", "change", "says"), MODELS.values(), ids=MODELS)
def test_models(train, checkpoint, tmp_path, file, change, says):
    copy = changed(shutil.copytree(checkpoint, tmp_path / "lm"), file, change)
    assert says in only(train(model__path=copy))
    # A start that came to nothing does not hold the folder for its config.
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert "nowhere" in only(train(model__path="nowhere/at/all"))


@pytest.fixture
def one_device(monkeypatch):
    """For what has to be compiled: that is faster for one device than for eight."""
    make = sharding.make_mesh
    monkeypatch.setattr(sharding, "make_mesh", lambda shape: make(shape, jax.devices()[:1]))


@pytest.mark.usefixtures("one_device")
def test_loss_that_is_not_a_number(train, data, tmp_path):
    """And then: going on with other data, and from a damaged checkpoint."""
    sets = ("train", "validation")
    files = [Path(shutil.copy(data / f"{name}.jsonl", tmp_path)) for name in sets]
    same = {
        **dict(zip(sets, files, strict=True)),
        "optimizer__learning_rate": 1e30,
        "save_every": 1,
        "eval_every": 0,
    }
    status, lines = train(**same)
    assert status == 2
    assert re.fullmatch(
        r"error: step 2: (loss|grad_norm) is (nan|inf); stopped, the last good checkpoint is "
        r"step 1; lower optimizer.learning_rate in a new run_dir, or look .*",
        lines[-1],
    )
    run_dir = tmp_path / "run"
    kept = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in kept] == [1]
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["1"]
    assert not (run_dir / "export").exists()

    before = contents(run_dir)
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(b"\n".join(whole.splitlines()[1:]))
        sentence = only(train(**same))
        assert f"{run_dir}: the training or validation data or the tokenizer has ch" in sentence
        assert "changed since step 1; choose another run_dir" in sentence
        file.write_bytes(whole)
    assert contents(run_dir) == before

    params = [path for path in run_dir.glob("checkpoints/1/params/**/*") if path.is_file()]
    largest = max(params, key=lambda path: path.stat().st_size)
    changed(largest.parent, largest.name, flip)
    sentence = only(train(**same))
    assert sentence.startswith(f"{run_dir}/checkpoints/1: this checkpoint cannot be read (")
    assert sentence.endswith("; start again in a new run_dir")
    assert contents(run_dir).keys() == before.keys()


@pytest.mark.usefixtures("one_device")
def test_evaluation_that_is_not_a_number(train, tmp_path):
    """Nothing is saved of a state whose validation is not finite."""
    status, lines = train(optimizer__learning_rate=1e30, save_every=0, eval_every=1)
    assert status == 2
    assert re.match(
        r"error: step 1: validation/loss is (nan|inf); stopped, nothing was saved; lower",
        lines[-1],
    )
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


# For the two commands that use a reward model; INPUT is the field "test" of the one and "input" of
# the other, LM a language model, OUT an empty folder, EXT the suffix of the output.
USE = [
    ({"reward_model": "nowhere"}, "nowhere: is not a reward model of launch."),
    ({"reward_model": "LM"}, "lm: is not a reward model of launch.train_rm"),
    ({"INPUT": "nowhere.jsonl"}, "nowhere.jsonl: there is no such file"),
    ({"mesh": "5,1,1"}, "mesh='5,1,1' makes 5 devices and there are 8"),
    ({"max_length": 5}, "max_length"),
    ({"max_length": 257}, "max_length=257 is more than the model's 256 positions; lower it"),
    ({"output": "OUT/none/x.EXT"}, "none does not exist; make it"),
    ({"output": "DATA/train.jsonl/x.EXT"}, "does not exist; make it"),
    ({"output": "OUT/folder.EXT"}, "is a folder; give the name of a file"),
    ({"output": "OUT/x.txt"}, "x.txt: give a FILE.json"),
]


@pytest.mark.parametrize(("given", "says"), USE)
@pytest.mark.parametrize("module", [evaluate_rm, score])
def test_use(launch, data, checkpoint, reward_model, tmp_path, module, given, says):
    extension, source = ("json", "test") if module is evaluate_rm else ("jsonl", "input")
    stands = {"DATA": data, "LM": checkpoint, "OUT": tmp_path, "EXT": extension}
    (tmp_path / f"folder.{extension}").mkdir()
    usual = {
        "reward_model": reward_model,
        "INPUT": data / "validation.jsonl",
        "output": tmp_path / f"out.{extension}",
    }
    wanted = {k: filled(v, stands) for k, v in (usual | given).items()}
    wanted[source] = wanted.pop("INPUT")
    assert says in only(launch(module, **wanted))
    assert contents(tmp_path) == {}


def test_nothing_to_evaluate_or_to_score(launch, data, reward_model):
    assert "instructions.jsonl: holds instructions" in only(
        launch(evaluate_rm, reward_model=reward_model, test=data / "instructions.jsonl")
    )
    assert "no response in 'output'" in only(
        launch(score, reward_model=reward_model, input=data / "prompts.jsonl")
    )


@pytest.mark.parametrize("change", [flip, half])
def test_a_damaged_reward_model(launch, data, reward_model, tmp_path, change):
    copy = shutil.copytree(reward_model / "export", tmp_path / "rm")
    changed(copy, "model.safetensors", change)
    sentence = only(launch(score, reward_model=copy, input=data / "validation.jsonl"))
    assert f"{copy}/model.safetensors: is damaged" in sentence


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (KeyboardInterrupt(), "interrupted; run the same command to go on"),
        (
            KeyboardInterrupt("step 3 is saved"),
            "step 3 is saved; run the same command to go on",
        ),
    ],
)
def test_interrupts(launch, monkeypatch, error, says):
    def main(config):
        raise error

    monkeypatch.setattr(score, "main", main)
    assert launch(score) == (130, [says])


def test_what_is_no_fault_of_the_users_is_raised(monkeypatch):
    """With its traceback: it is a fault of ours."""

    def main(config):
        raise ValueError("ours")

    monkeypatch.setattr(sys, "argv", ["score"])
    with pytest.raises(ValueError, match="ours"):
        cli.command(main, DEFAULTS[score], "")
