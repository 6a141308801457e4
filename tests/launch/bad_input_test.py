"""What a user may get wrong, through the commands: one sentence, exit status 2, nothing written."""

import json
import re
import shutil
from pathlib import Path

import bad_input_cases
import pytest
from bad_input_cases import fill, read_files

from fgrlhf_jax.data import records
from fgrlhf_jax.runtime.files import write_json, write_jsonl
from fgrlhf_jax.tiny_world.datasets import make_feedback
from launch import dpo, evaluate_rm, generate, ppo, score, train_rm
from launch.shared import config_files, reading

pytest_plugins = ["runs"]


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
    for name in rows:
        write_jsonl(folder / f"{name}.jsonl", rows[name])
    return folder


@pytest.fixture
def train_fields(data, tmp_path) -> dict:
    """Of launch.train_rm on small files in a folder of its own."""
    files = {name: data / f"{name}.jsonl" for name in ("train", "validation")}
    sizes = {"steps": 4, "batch_size": 8, "model__vocab_size": 300, "data__buckets": 1}
    return files | sizes | {"run_dir": tmp_path / "run"}


@pytest.fixture
def train(refused, train_fields):
    """Run launch.train_rm with other fields: the sentence that refuses them."""
    return lambda **fields: refused(train_rm, **train_fields | fields)


# Fields of launch.train_rm ("__" for the dots) and a part of the sentence; DATA has files of every
# kind, and there are 8 devices.
TRAIN = [
    ({"train": "nowhere.jsonl"}, "nowhere.jsonl: there is no such file"),
    ({"train": "DATA/instructions.jsonl"}, "instructions.jsonl:1: has one response"),
    ({"validation": "DATA/instructions.jsonl"}, "instructions.jsonl:1: has one response"),
    ({"batch_size": 64}, "batch_size: 64 is more than the 48 rows of the data"),
    ({"train": ""}, "train is empty; give --config.train=FILE"),
    ({"validation": "", "validation_share": 0.0}, "none is left for validation"),
    (
        {"data__max_length": 64},
        "train: edits: data.max_prompt_length=64: must be above 0 and below",
    ),
    ({"data__max_length": 1024}, "data.max_length=1024 is more than the model's 512 positions"),
    ({"optimizer__freeze": "("}, "optimizer.freeze='(': is not a regular expression"),
    ({"lora__base_dtype": "int8"}, "lora.base_dtype=int8: has no effect, since lora.rank=0 trains"),
    ({"optimizer__freeze": "embedd$"}, "'embedd$' finds no parameter"),
    ({"optimizer__freeze": "."}, "freeze='.' finds every parameter"),
    ({"run_dir": ""}, "run_dir is empty; give --config.run_dir=FOLDER"),
    ({"distributed": True, "coordinator": "here"}, "coordinator=here: give HOST:PORT of process 0"),
    ({"mesh": "3,1,1"}, "mesh='3,1,1': give data,fsdp,tensor as three sizes"),
    ({"micro_batch_size": 16, "batch_size": 24}, "=24 is not a multiple of micro_batch_size=16"),
    ({"model__path": "nowhere/at/all"}, "nowhere/at/all: no such model; give a "),
    ({"model__path": "DATA"}, "config.json"),
    ({"model__size": "llama_7b"}, "model.path is empty, and random weights are for"),
    ({"loss": "sequence", "model__head": "state_action"}, "head=state_action needs a token loss"),
]


@pytest.mark.parametrize(("fields", "message"), TRAIN)
def test_training(train, data, tmp_path, fields, message):
    fields = {k: fill(v, {"DATA": data}) for k, v in fields.items()}
    assert message in train(**fields)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("share", "few"), [(0.1, True), (0.9, False)])
def test_few_rows_to_validate_on_are_said(data, capsys, share, few):
    config = config_files.load(train_rm.CONFIG)
    config.validation_share = share
    reading.read_sets(config, str(data / "train.jsonl"))
    assert (
        "too few for reliable figures; give --config.validation" in capsys.readouterr().out
    ) == few


@pytest.mark.parametrize(
    ("place", "text", "message"),
    [
        ("file", "mine", r"file cannot be written \(.*\); choose another folder"),
        ("config.json", "{", r"is damaged or cut short; put back .* or choose another run_dir"),
        ("config.json", '{"vocab_size": 3}', "is not the config of a run; choose another"),
    ],
)
def test_run_dir_of_something_else(train, tmp_path, place, text, message):
    (tmp_path / place).write_text(text)
    assert re.search(message, train(run_dir=tmp_path / place.removesuffix("config.json")))
    assert read_files(tmp_path) == {str(tmp_path / place): text.encode()}


def test_run_dir_of_another_config(train, data, tmp_path):
    """Every field that differs is named, with both values; what only watches may differ."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "metrics.jsonl").touch()
    config = config_files.parse(
        ["", f"--config.train={data / 'train.jsonl'}", "--config.optimizer.b1=0.5"], train_rm.CONFIG
    )
    write_json(run_dir / "config.json", json.loads(config.to_json()))
    before = read_files(tmp_path)
    sentence = train(steps=5, optimizer__b1=0.25, save_every=3, max_to_keep=9)
    assert sentence.startswith(f"run_dir={run_dir} holds a run of another config: ")
    assert "optimizer.b1 (saved 0.5, now 0.25)" in sentence
    assert f"steps (saved {config.steps}, now 5)" in sentence
    for same in ("seed", "train", "save_every", "max_to_keep", "run_dir"):
        assert f", {same} (" not in sentence
    assert "choose another run_dir" in sentence
    assert read_files(tmp_path) == before
    many = {f"optimizer__{name}": 0.125 for name in ("b2", "eps", "weight_decay", "clip_norm")}
    many |= {"optimizer__schedule": "linear", "optimizer__learning_rate": 0.125, "seed": 3}
    assert re.search(r"\) and \d+ more; choose another run_dir", train(steps=5, epochs=7, **many))


def flip(content: bytes) -> bytes:
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]


def test_a_damaged_model(train, refused, data, world, tmp_path):
    copies = [shutil.copytree(f, tmp_path / f.name) for f in (world.policy, world.token / "export")]
    for copy in copies:
        weights = copy / "model.safetensors"
        weights.write_bytes(flip(weights.read_bytes()))
    message = "model.safetensors: is damaged"
    assert f"{copies[1]}/{message}" in refused(
        score, reward_model=copies[1], input=data / "validation.jsonl"
    )
    fields = {"data__max_length": 64, "data__max_prompt_length": 32}
    assert message in train(model__path=copies[0], **fields)
    # A start that came to nothing does not hold the folder for its config.
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert "nowhere" in train(model__path="nowhere/at/all")


# For the two commands that use a reward model; INPUT is the field "test" of the one and "input" of
# the other, LM a language model, OUT an empty folder, EXT the suffix of the output.
USE = [
    ({"reward_model": "LM"}, "policy: is not a reward model of launch.train_rm"),
    ({"INPUT": "nowhere.jsonl"}, "nowhere.jsonl: there is no such file"),
    ({"INPUT": "DATA/prompts.jsonl"}, "response"),  # there is none
    ({"mesh": "5,1,1"}, "mesh='5,1,1': give data,fsdp,tensor as three sizes"),
    ({"max_length": 65}, "max_length=65 is more than the model's 64 positions; lower it"),
    ({"output": "OUT/none/x.EXT"}, "none does not exist; create it"),
    ({"output": "OUT/folder.EXT"}, "is a folder; give the name of a file"),
    ({"output": "OUT/x.txt"}, "x.txt: give a FILE.json"),
]


@pytest.mark.parametrize(("fields", "message"), USE)
@pytest.mark.parametrize("module", [evaluate_rm, score])
def test_use(refused, data, world, tmp_path, module, fields, message):
    extension, source = ("json", "test") if module is evaluate_rm else ("jsonl", "input")
    words = {"DATA": data, "LM": world.policy, "OUT": tmp_path, "EXT": extension}
    (tmp_path / f"folder.{extension}").mkdir()
    usual = {"reward_model": world.token, "INPUT": data / "validation.jsonl"}
    usual["output"] = tmp_path / f"out.{extension}"
    fields = {name: fill(value, words) for name, value in (usual | fields).items()}
    fields[source] = fields.pop("INPUT")
    assert message in refused(module, **fields)
    assert read_files(tmp_path) == {}


@pytest.mark.parametrize("module", [evaluate_rm, score])
def test_the_command_that_makes_a_missing_default(refused, data, module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = "test" if module is evaluate_rm else "input"
    for given, missing in ({}, "reward_model"), ({"reward_model": data}, source):
        sentence = refused(module, **given)
        assert sentence.startswith(f"{missing}=runs/rm_tiny_token_edit")
        assert "does not exist; run `python -m launch.train_rm` first, or give another" in sentence


@pytest.mark.parametrize("module", [dpo, generate, ppo])
def test_a_mesh_is_refused_before_the_embedded_models_are_trained(
    refused, tmp_path, monkeypatch, module
):
    monkeypatch.chdir(tmp_path)
    assert "mesh='5,1,1': give data,fsdp,tensor as three sizes" in refused(module, mesh="5,1,1")
    assert not (tmp_path / "runs").exists()


def test_no_train_for_a_model_that_makes_no_data(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "train is empty" in refused(train_rm, "--config=configs/rm.py:cad")
    assert "lora.rank=4: needs a model to adapt" in refused(train_rm, lora__rank=4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_evaluation_that_is_not_a_number(train_fields, tmp_path, monkeypatch, capsys):
    """Nothing is saved of a state whose validation is not finite."""
    fields = train_fields | {"optimizer__learning_rate": 1e30, "save_every": 0, "eval_every": 1}
    status, lines = bad_input_cases.run(monkeypatch, capsys, train_rm, **fields)
    assert status == 2
    assert re.match(
        r"error: step 1: validation/loss is (nan|inf).*; stopped, nothing was saved; lower",
        lines[-1],
    )
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
