"""An export whose meaning was changed is refused, and never gives other numbers in silence."""

import json
import shutil
from pathlib import Path

import ppo_cases
import pytest

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import hf_load
from fgrlhf_jax.models.language_model import LanguageModel
from fgrlhf_jax.reward_model.scorer import read_module
from fgrlhf_jax.runtime.files import write_jsonl
from launch import score


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A reward model and a policy, exported."""
    folder = tmp_path_factory.mktemp("models")
    ppo_cases.save_reward_model(folder / "rm", "token_edit")
    ppo_cases.save_policy(folder / "policy", template="plain")
    return folder


def replaced(file: str, old: str, new: str):
    """The change of a text in a file."""

    def change(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))

    return change


def configured(change):
    """A change of config.json after which it has no checksums, as by a user who means it."""

    def run(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["fgrlhf"].pop("sha256")
        change(config["fgrlhf"])
        (folder / "config.json").write_text(json.dumps(config))

    return run


def swap_ids(folder: Path) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[5:7]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(content))


CHANGED = {
    "rope_theta": replaced("config.json", '"rope_theta": 10000.0', '"rope_theta": 20000.0'),
    "calibration": replaced("config.json", '"mean": 0.1', '"mean": 1.0'),
    "zero": replaced("config.json", '"std": 2.0', '"std": 0.0'),
    "template": replaced("config.json", '"template": "plain"', '"template": "alpaca"'),
    "vocabulary": swap_ids,
    "special": replaced("tokenizer_config.json", '"</s>"', '"<unk>"'),
    "chat": lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}"),
    "gone": lambda folder: (folder / "tokenizer_config.json").unlink(),
}
MALFORMED = {
    "sums": configured(lambda ours: ours.update(sha256="text")),
    "sum": configured(lambda ours: ours.update(sha256={"config.json": 3})),
    "empty": configured(lambda ours: ours.update(data={})),
    "list": configured(lambda ours: ours.update(data=[])),
    "no std": configured(lambda ours: ours["calibration"].update(std=0)),
    "nan": configured(lambda ours: ours["calibration"].update(mean=float("nan"))),
    "infinite": configured(lambda ours: ours["calibration"].update(std=1e999)),
    "text": configured(lambda ours: ours.update(calibration="0.1")),
    "loss": configured(lambda ours: ours["settings"].update(loss="mine")),
    "length": configured(lambda ours: ours["data"].update(max_length="long")),
    "prompt": configured(lambda ours: ours["data"].update(max_prompt_length=10**6)),
    "eos": configured(lambda ours: ours["data"].update(append_eos="no")),
    "number": replaced("config.json", '"fgrlhf": {', '"fgrlhf": 3, "was": {'),
}


@pytest.mark.parametrize("name", [*CHANGED, *MALFORMED])
def test_a_reward_model_with_another_meaning_is_refused(models, tmp_path, refused, name):
    folder = shutil.copytree(models / "rm" / "export", tmp_path / "rm")
    (CHANGED | MALFORMED)[name](folder)
    write_jsonl(tmp_path / "rows.jsonl", [{"instruction": "say", "output": "hello"}])
    sentence = refused(score, reward_model=folder, input=tmp_path / "rows.jsonl")
    assert sentence.startswith(str(folder))
    assert len(sentence) < 1000
    if name in CHANGED:
        assert 'delete "sha256" in config.json if the change is meant' in sentence


@pytest.mark.parametrize("name", ["rope_theta", "vocabulary", "special", "chat", "gone"])
def test_so_is_a_policy(models, tmp_path, name):
    folder = shutil.copytree(models / "policy", tmp_path / "policy")
    CHANGED[name](folder)
    with pytest.raises(InputError, match='delete "sha256" in'):
        LanguageModel.load(folder)


def test_a_change_that_is_meant_and_what_is_no_part_of_the_model(models, tmp_path):
    folder = shutil.copytree(models / "rm" / "export", tmp_path / "rm")
    (folder / "README.md").write_text("mine")
    (folder / "notes.txt").write_text("mine")
    _, before = read_module(folder)
    configured(lambda ours: ours["calibration"].update(std=4))(folder)
    assert read_module(folder)[1].normalization == before.normalization._replace(std=4)
    assert hf_load.load_tokenizer(folder).eos_token == "</s>"
