"""PEFT folders through the commands: used as the merged model is, or refused in one sentence."""

import dataclasses
import functools
import json
from pathlib import Path

import hf_cases
import jax
import numpy as np
import ppo_cases
import pytest
import tiny_cases
from bad_input_cases import read_files
from ppo_cases import launch

from fgrlhf_jax import LanguageModel, RewardModel, SamplingParams
from fgrlhf_jax.models import hf_load, hf_save
from fgrlhf_jax.models.checksums import ADAPTER, BASE_FIELD
from fgrlhf_jax.runtime.continued_rows import rejected_path
from fgrlhf_jax.runtime.files import read_jsonl, write_json, write_jsonl
from launch import collect_edits, evaluate, evaluate_rm, generate, ppo, score

pytest_plugins = ["runs"]
pytestmark = pytest.mark.usefixtures("in_process")
LOCAL = {"provider": "local", "max_new_tokens": 6}
PROMPT = "capital of hungary"


@pytest.fixture(scope="module")
def adapter(world, tmp_path_factory) -> Path:
    """Of a policy."""
    folder = tmp_path_factory.mktemp("adapter") / "model"
    return ppo_cases.save_policy(folder, seed=3, base=world.policy, template="plain")


@pytest.mark.slow
def test_a_reward_model_is_evaluated_as_merged(world, rm_files, tmp_path):
    folder = ppo_cases.save_reward_model(tmp_path / "rm", "token_edit", base=world.policy)
    model = RewardModel.load(folder)
    params = {"backbone": ppo_cases.policy_params()["backbone"]}
    params |= hf_cases.adapter_params(model.module)
    params = tiny_cases.merged(params, hf_cases.ADAPTER.scale)
    dataclasses.replace(model, params=params).save(tmp_path / "whole" / "export")
    test = tmp_path / "test.jsonl"
    write_jsonl(test, read_jsonl(rm_files["train"])[:4])
    tables = []
    for model in (folder, tmp_path / "whole"):
        output = tmp_path / f"{model.name}.json"
        launch(evaluate_rm, {"reward_model": model, "test": test, "output": output})
        tables.append(json.loads(output.read_text()))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), *tables)
    assert tables[0]["test"]["edits"]["n"] == 4


def test_an_editor_on_this_machine_edits_as_merged(world, adapter, tmp_path, capsys):
    params = hf_load.load_params(adapter, hf_cases.abstract(ppo_cases.POLICY))
    options = {"architecture": hf_save.LANGUAGE_MODEL, "extra": {"data": {"template": "plain"}}}
    whole = tmp_path / "whole"
    hf_save.save(whole, params, ppo_cases.CFG, ppo_cases.TOKENIZER, **options)
    (tmp_path / "template.txt").write_text("{{ response }}")
    edits = []
    for model in (adapter, whole, world.policy):
        output = tmp_path / f"{len(edits)}.jsonl"
        flags = {"model": model, "output": output, "template_file": tmp_path / "template.txt"}
        flags = LOCAL | flags | {"max_new_tokens": 32, "max_change_ratio": 1}
        launch(collect_edits, flags)
        assert "20 requests (0 of them retries)" in capsys.readouterr().err
        rows = read_jsonl(output) + read_jsonl(rejected_path(output))
        assert {row["annotator"] for row in rows} == {f"local/{model}"}
        edits.append([row | {"annotator": "", "request_key": ""} for row in rows])
    assert len(edits[0]) == 20
    assert edits[0] == edits[1] != edits[2]
    launch(collect_edits, flags)
    assert "requests" not in capsys.readouterr().err  # all replies are stored


def test_a_judge_on_this_machine_is_the_adapter(world, adapter, tmp_path):
    """Whose reply, and not its base's, is the verdict, whichever response is shown first."""
    words, params = ("budapest", "lisbon"), SamplingParams(max_new_tokens=6)
    prompts = [f"{PROMPT} {a} {b}" for a, b in (words, words[::-1])]
    ours, base = (
        {text.strip() for text in LanguageModel.load(model).generate(prompts, params).texts}
        for model in (adapter, world.policy)
    )
    assert not ours & base
    for word in words:
        row = {"instruction": PROMPT, "output": word, "generator": word}
        write_json(tmp_path / f"{word}.json", [row])
    (tmp_path / "template.txt").write_text("{{ instruction }} {{ first }} {{ second }}")
    files = {"template_file": "template.txt", "output": "result.json"}
    files |= {"outputs": "budapest.json", "reference": "lisbon.json"}
    flags = {name: tmp_path / file for name, file in files.items()}
    flags |= {"model": adapter, "labels": ",".join([*ours, "none"])}
    launch(evaluate, LOCAL | flags)
    (row,) = json.loads((tmp_path / "result.annotations.json").read_text())
    assert row["preference"] in (1, 2)


def changed(folder: Path, **fields) -> Path:
    """An adapter that another program may have made, and its fields."""
    (folder / "fgrlhf.json").unlink()
    hf_cases.configure(folder / ADAPTER, **fields)
    return folder


def test_what_cannot_be_used_is_refused(world, rm_files, refused, tmp_path):
    other = ppo_cases.save_policy(tmp_path / "other", seed=9, template="plain")
    ours = ppo_cases.save_reward_model(tmp_path / "ours", "token_edit", base=world.policy)
    hf_cases.configure(ours / "export" / ADAPTER, **{BASE_FIELD: str(other)})
    theirs = changed(ppo_cases.save_policy(tmp_path / "theirs", base=other), target_modules=["w1"])
    paid = ppo_cases.save_reward_model(tmp_path / "rm", "token_edit", base=other)
    before = read_files(tmp_path)
    run = {"policy": world.policy, "prompts": world.prompts, "run_dir": tmp_path / "run"}
    sentence = refused(score, reward_model=ours, input=rm_files["validation"])
    assert "export: is an adapter of another base: the weights in" in sentence
    sentence = refused(generate, model=theirs, max_new_tokens=6)
    assert "adapter_config.json: it adapts w1, which is not supported; merge the adap" in sentence
    sentence = refused(ppo, lora__rank=4, lora__alpha=6, reward_model=paid, **run)
    assert f"reward_model={paid}: is an adapter of {other}, and the policy's base is" in sentence
    assert "or hold both in memory with --config.lora.share_base=False" in sentence
    assert read_files(tmp_path) == before
