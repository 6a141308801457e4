"""An export whose meaning was changed is refused, and never gives other numbers in silence."""

import json
import shutil
from pathlib import Path

import ppo_cases
import pytest

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models.language_model import LanguageModel
from fgrlhf_jax.reward_model.modules import read_module
from fgrlhf_jax.runtime.files import write_jsonl
from launch import score


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A reward model and a policy, exported."""
    folder = tmp_path_factory.mktemp("models")
    ppo_cases.save_reward_model(folder / "rm", "token_edit")
    ppo_cases.save_policy(folder / "policy", template="plain")
    return folder


def swap_ids(tokenizer: dict) -> None:
    vocabulary = tokenizer["model"]["vocab"]
    one, two = list(vocabulary)[5:7]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]


# A file of the export and a change of its content.
CHANGED = {
    "rope_theta": ("config.json", lambda config: config.update(rope_theta=20000.0)),
    "calibration": ("config.json", lambda config: config["fgrlhf"]["calibration"].update(mean=1)),
    "std": ("config.json", lambda config: config["fgrlhf"]["calibration"].update(std=0)),
    "template": ("config.json", lambda config: config["fgrlhf"]["data"].update(template="alpaca")),
    "vocabulary": ("tokenizer.json", swap_ids),
    "eos": ("tokenizer_config.json", lambda config: config.update(eos_token="<unk>")),
    "added file": ("added_tokens.json", lambda content: content.update(a=1)),
}
# Changes of "fgrlhf" in a config.json without checksums, as of somebody who means a change.
MALFORMED = {
    "checksums are text": lambda ours: ours.update(sha256="text"),
    "a checksum is a number": lambda ours: ours.update(sha256={"config.json": 3}),
    "data is empty": lambda ours: ours.update(data={}),
    "data is a list": lambda ours: ours.update(data=[]),
    "std is 0": lambda ours: ours["calibration"].update(std=0),
    "mean is NaN": lambda ours: ours["calibration"].update(mean=float("nan")),
    "std is infinite": lambda ours: ours["calibration"].update(std=1e999),
    "mean is no float": lambda ours: ours["calibration"].update(mean=10**400),
    "calibration is text": lambda ours: ours.update(calibration="0.1"),
    "loss is unknown": lambda ours: ours["settings"].update(loss="mine"),
    "a length is text": lambda ours: ours["data"].update(max_length="long"),
    "prompts fill everything": lambda ours: ours["data"].update(max_prompt_length=10**6),
    "append_eos is text": lambda ours: ours["data"].update(append_eos="no"),
}


def change_json(file: Path, change) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    change(content)
    file.write_text(json.dumps(content))


def mean_it(change):
    return lambda config: (config["fgrlhf"].pop("sha256"), change(config["fgrlhf"]))


@pytest.mark.parametrize("name", [*CHANGED, *MALFORMED, "fgrlhf is a number"])
def test_a_reward_model_with_another_meaning_is_refused(models, tmp_path, refused, name):
    folder = shutil.copytree(models / "rm" / "export", tmp_path / "rm")
    if name in CHANGED:
        change_json(folder / CHANGED[name][0], CHANGED[name][1])
    elif name in MALFORMED:
        change_json(folder / "config.json", mean_it(MALFORMED[name]))
    else:
        change_json(folder / "config.json", lambda config: config.update(fgrlhf=3))
    write_jsonl(tmp_path / "rows.jsonl", [{"instruction": "say", "output": "hello"}])
    sentence = refused(score, reward_model=folder, input=tmp_path / "rows.jsonl")
    assert sentence.startswith(str(folder))
    assert len(sentence) < 1000
    assert ('delete "sha256" in config.json if the change is meant' in sentence) == (
        name in CHANGED or name == "a checksum is a number"
    )


@pytest.mark.parametrize("name", ["rope_theta", "vocabulary", "eos", "added file"])
def test_so_is_a_policy(models, tmp_path, name):
    folder = shutil.copytree(models / "policy", tmp_path / "policy")
    change_json(folder / CHANGED[name][0], CHANGED[name][1])
    advice = "no part of this export; delete it" if name == "added file" else 'delete "sha256" in'
    with pytest.raises(InputError, match=advice):
        LanguageModel.load(folder)


def test_a_change_that_is_meant_and_what_is_no_part_of_the_model(models, tmp_path, capsys):
    folder = shutil.copytree(models / "rm" / "export", tmp_path / "rm")
    (folder / "README.md").write_text("mine")
    _, before = read_module(folder)
    change_json(folder / "config.json", mean_it(lambda ours: ours["calibration"].update(std=4)))
    assert read_module(folder)[1].normalization == before.normalization._replace(std=4)
    assert capsys.readouterr().err == ""
    older = shutil.copytree(models / "rm" / "export", tmp_path / "older")
    change_json(older / "config.json", mean_it(lambda ours: ours.pop("encoding")))
    read_module(older)
    assert "was trained when prompt and response were encoded apart" in capsys.readouterr().err
