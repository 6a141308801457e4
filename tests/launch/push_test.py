"""launch.push against a hub on this machine: what arrives there, read back; what is refused."""

import hub_cases
import huggingface_hub
import jax
import numpy as np
import ppo_cases
import pytest
from huggingface_hub import constants

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import hf_files, hf_load
from fgrlhf_jax.reward_model.modules import read_module
from fgrlhf_jax.runtime.files import write_jsonl
from launch import push, score
from launch.shared import config_files

ROWS = [
    {"instruction": "say", "original": "a b", "edited": "a c", "annotator": "openai/x", "id": "1"},
    {"instruction": "say", "original": "d e", "edited": "d f", "annotator": None, "id": "2"},
]

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # huggingface_hub's uploads


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_cases.serve(token="hf_right") as server:
        address = f"http://127.0.0.1:{server.server_port}"
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        huggingface_hub.close_session()
        yield server
        huggingface_hub.close_session()


@pytest.fixture
def files(tmp_path):
    ppo_cases.save_reward_model(tmp_path / "rm", "token_edit")
    write_jsonl(tmp_path / "edits.jsonl", ROWS)
    return {"model": tmp_path / "rm", "rows": tmp_path / "edits.jsonl"}


def run(path, **fields) -> None:
    fields = {"path": path, "repo": "me/it", "license": "mit", "made": "By hand."} | fields
    push.main(
        config_files.parse(["", *(f"--config.{k}={v}" for k, v in fields.items())], push.CONFIG)
    )


def test_a_model_and_its_card_arrive_and_load(hub, files, capsys):
    run(files["model"])
    stored = hub.repos["models/me/it"]["main"]
    export = files["model"] / "export"
    assert stored["model.safetensors"] == (export / "model.safetensors").read_bytes()
    assert huggingface_hub.ModelCard(stored["README.md"].decode()).data.license == "mit"
    assert hub.private == {"models/me/it"}
    assert "http" in capsys.readouterr().out
    assert read_module("me/it") == read_module(export)
    assert hf_files.resolve("me/it").is_relative_to(constants.HF_HUB_CACHE)


def test_rows_arrive_with_a_card_that_says_what_they_are(hub, files):
    run(files["rows"], private=False, revision="v1")
    stored = hub.repos["datasets/me/it"]["v1"]
    assert stored["edits.jsonl"] == files["rows"].read_bytes()
    card = huggingface_hub.DatasetCard(stored["README.md"].decode())
    assert card.data.license == "mit"
    assert "| edits | 2 rows |" in card.text
    assert "| annotator | str; 1 rows |" in card.text
    assert "By hand." in card.text
    assert hub.private == set()


def test_a_push_that_stopped_goes_on_and_replaces_what_is_gone(hub, files):
    hub.faults["/commit/"] = 503
    with pytest.raises(InputError, match=r"run the same command again to resume \(HfHub"):
        run(files["model"])
    (blob,) = hub.blobs
    hub.faults.clear()
    hub.blobs[blob] += b"not sent again"
    hub.repos["models/me/it"]["main"] |= {"model-00001-of-00002.safetensors": b"", "a.md": b""}
    run(files["model"])
    stored = hub.repos["models/me/it"]["main"]
    assert stored["model.safetensors"].endswith(b"not sent again")
    assert "a.md" in stored
    assert "model-00001-of-00002.safetensors" not in stored


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"path": "nowhere"}, "path='nowhere': is not a run folder, export or file of rows"),
        ({"path": "nowhere.jsonl"}, "nowhere.jsonl: there is no such file"),
        ({"repo": "it"}, "repo='it': is not a name on the hub; give ORG/NAME"),
        ({"license": ""}, "license is empty; give the terms of use"),
        ({"made": " "}, "made is empty; describe how the rows were collected"),
        ({"token": "hf_wrong"}, "the hub does not accept the token; run `hf auth login`, or set"),
        ({"status": 403}, "the token may not write there; make one with write access"),
        ({"status": 404}, "there is no such user, organization or branch; check the name"),
        ({"address": "http://127.0.0.1:9"}, "the hub cannot be used; run the same command again"),
        ({"offline": True, "token": ""}, "HF_HUB_OFFLINE is set, and a push needs the hub"),
        ({"token": "", "address": "http://127.0.0.1:9"}, "no token for the hub was found; run `hf"),
        ({"public": True}, "repo=me/it: exists and is public; choose"),
    ],
)
def test_what_is_refused(hub, files, refused, monkeypatch, fields, says):
    monkeypatch.setenv("HF_TOKEN", fields.pop("token", "hf_right"))
    monkeypatch.setattr(constants, "ENDPOINT", fields.pop("address", constants.ENDPOINT))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", fields.pop("offline", False))
    hub.faults["/create"] = fields.pop("status", None)
    if fields.pop("public", False):
        hub.repos["datasets/me/it"] = {"main": {}}
    usual = {"path": files["rows"], "repo": "me/it", "license": "mit", "made": "'By hand.'"}
    assert says in refused(push, **usual | fields)
    assert not any(hub.repos.get("datasets/me/it", {"main": {}})["main"])


def test_a_changed_model_is_not_pushed(hub, files, refused):
    weights = files["model"] / "export" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    sentence = refused(push, path=files["model"], repo="me/it", license="mit")
    assert sentence.startswith(f"{weights}: is damaged, missing or not the one")
    assert hub.repos == {}


def test_an_adapter_is_pushed_once_its_base_is_on_the_hub(hub, refused, tmp_path):
    base = ppo_cases.save_policy(tmp_path / "base")
    folder = ppo_cases.save_policy(tmp_path / "adapter", base=base, template="plain")
    sentence = refused(push, path=folder, repo="me/it", license="mit")
    assert sentence.startswith(f"path={folder}: is an adapter of {base}, which is only on this")
    assert hub.repos == {}
    run(base, repo="me/base")
    file = folder / "adapter_config.json"
    file.write_text(file.read_text().replace(str(base), "me/base"))
    run(folder)
    models = (hf_load.load_params(model, ppo_cases.policy_params()) for model in ("me/it", folder))
    jax.tree.map(np.testing.assert_array_equal, *models)


def test_a_wrong_token_cannot_read_a_model(hub, files, refused, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    sentence = refused(score, reward_model="me/it", input=files["rows"])
    assert "status 401" in sentence
    assert "token" in sentence
