"""A policy's probabilities at every change, against whole sequences through the model."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import ppo_cases
import pytest
import tiny_cases

from fgrlhf_jax.data import records, sources
from fgrlhf_jax.data.changes import make_row
from fgrlhf_jax.data.records import Edit, Instruction
from fgrlhf_jax.data.split import split
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import heads
from fgrlhf_jax.models.language_model import LanguageModel
from fgrlhf_jax.runtime import sharding
from fgrlhf_jax.runtime.files import write_jsonl
from fgrlhf_jax.tiny_world.datasets import make_feedback
from fgrlhf_jax.training import correction
from launch import sft

MODEL = heads.CausalLM(tiny_cases.CFG)
PARAMS = tiny_cases.parameters(MODEL)
END = 0
PAIRS = [
    tiny_cases.pair([1, 2, 3], [*edited, END], [*original, END], row)
    for row, (edited, original) in enumerate(
        [
            ([9, 8, 4, 5, 6, 7], [4, 5, 6, 7]),  # put in at the start
            ([4, 5], [4, 5, 6, 7]),  # taken out at the end
            ([4, 10, 11, 12, 7, 13, 8, 8, 15], [4, 5, 6, 7, 13, 14, 8]),  # several
            ([20], [21, 22, 23]),
        ]
    )
]


def logprobs(tokens) -> np.ndarray:
    """float64[S, V] of what stands behind every token of one sequence."""
    row = np.pad(tokens, (0, 16 - len(tokens)))[None].astype(np.int32)
    return np.asarray(whole_pass(row, *heads.positions_and_mask(row >= 0))[0], np.float64)


@jax.jit
def whole_pass(*inputs):
    return jax.nn.log_softmax(MODEL.apply({"params": PARAMS}, *inputs))


def mesh():
    return sharding.make_mesh("1,-1,1", jax.devices()[:1])


def test_spans_have_the_probabilities_of_whole_sequences():
    rows = [make_row(pair) for pair in PAIRS]
    scores = correction.score_changes(PARAMS, rows, MODEL, mesh(), batch_size=3)
    expected = []
    for row in rows:
        for change in row.changes:
            prefix = row.tokens[: change.column].tolist()
            for span in (change.inserted.tolist(), change.removed.tolist()):
                table = logprobs(prefix + span)[change.column - 1 :]
                each = [table[k, token] for k, token in enumerate(span)]
                expected.append((sum(each), each[0], table[0].argmax() == span[0]))
    put_in, taken_out = expected[::2], expected[1::2]
    close = {"atol": 2e-5, "rtol": 1e-5}
    np.testing.assert_allclose(scores.inserted_N, [e[0] for e in put_in], **close)
    np.testing.assert_allclose(scores.removed_N, [e[0] for e in taken_out], **close)
    np.testing.assert_allclose(scores.first_inserted_N, [e[1] for e in put_in], **close)
    np.testing.assert_allclose(scores.first_removed_N, [e[1] for e in taken_out], **close)
    assert scores.written_N.tolist() == [e[2] for e in put_in]
    assert scores.record_N.tolist() == [0, 1, 2, 2, 2, 3]
    kinds = ["insert", "delete", "replace", "replace", "insert", "replace"]
    assert scores.kind_N.tolist() == kinds


def test_unchanged_tokens_have_those_of_the_edited_text():
    rows = [make_row(pair) for pair in PAIRS]
    scores = correction.score_changes(PARAMS, rows, MODEL, mesh())
    expected = []
    for row in rows:
        table = logprobs(row.tokens[: row.length])
        columns = np.flatnonzero(row.unchanged)
        expected += [table[column - 1, row.tokens[column]] for column in columns]
    np.testing.assert_allclose(scores.logprob_M, expected, atol=2e-5, rtol=1e-5)
    # 4 5 6 7 END, 4 5 END, 4 7 13 8 END, END
    assert np.bincount(scores.record_M).tolist() == [5, 3, 5, 1]


@pytest.fixture(scope="module")
def policies(tmp_path_factory) -> list[LanguageModel]:
    folder = tmp_path_factory.mktemp("policies")
    with pytest.MonkeyPatch.context() as patch:
        tiny_cases.one_device(patch)
        paths = (ppo_cases.save_policy(folder / str(n), seed=n, template="plain") for n in (0, 1))
        return [LanguageModel.load(path, lazy=True) for path in paths]


EDITS = [
    Edit("repeat dog twice", "", "dog cat", "dog dog"),
    Edit("opposite of hot and big", "", "the opposite is cold", "the opposite of hot is cold"),
]


def test_a_policy_against_another(policies):
    said = []
    result = correction.evaluate(*policies[:1], EDITS, policies[1], log=said.append)
    counts = "2 rows, 2 kept, 0 dropped_overlong, 0 truncated, 0 unchanged, 2 changes"
    assert said == [f"edits: {counts}"]
    assert result["sampled"]["n"] == result["sampled"]["records"] == 2
    alone = correction.evaluate(policies[1], EDITS, log=said.append)
    assert result["reference"] == alone
    gain = result["sampled"]["mean"] - alone["sampled"]["mean"]
    assert result["gain"]["sampled"]["mean"] == pytest.approx(gain)
    assert result["unchanged"]["moved"]["mean"] > 0


def test_how_likely_responses_are(policies):
    """As in a whole pass, with the end where there is one."""
    prompt = Instruction("reverse cat dog", "", "")
    texts, ended = ["dog cat", "", "cat", "dog cat"], [False, False, False, True]
    logprobs = correction.response_logprobs(policies[0], [prompt] * 4, texts, ended)
    model, params = policies[0].module, policies[0].read_params()
    tokens = [*policies[0].tokenizer("reverse cat dog\ndog cat")["input_ids"], 2]
    row = jnp.array([tokens], jnp.int32)
    inputs = row, *heads.positions_and_mask(row >= 0)
    logits = jax.jit(model.apply)({"params": params}, *inputs)[0]
    table, start = np.asarray(jax.nn.log_softmax(logits)), len(policies[0].encode(prompt))
    expected = [table[k - 1, tokens[k]] for k in range(start, len(tokens))]
    np.testing.assert_allclose(logprobs[0], expected[:-1], atol=2e-5)
    np.testing.assert_allclose(logprobs[3], expected, atol=2e-5)
    assert (len(logprobs[1]), len(logprobs[2])) == (0, 1)
    result = correction.fluency(policies[0], [prompt] * 2, texts[:2])
    assert result == {"mean": pytest.approx(np.mean(expected[:-1]), abs=2e-5), "se": None, "n": 1}


def test_a_training_on_edits_says_what_it_did_to_those_held_out(policies, tmp_path, monkeypatch):
    """As launch.evaluate would."""
    tiny_cases.one_device(monkeypatch)
    write_jsonl(tmp_path / "edits.jsonl", make_feedback(40, 0)[0])
    fields = {"train": tmp_path / "edits.jsonl", "validation_share": 0.25, "steps": 3}
    fields |= {"model.path": policies[1].path, "run_dir": tmp_path / "run", "batch_size": 8}
    ppo_cases.launch(sft, fields | ppo_cases.SHORT_ROWS | {"data__max_prompt_length": 16})
    with open(tmp_path / "run" / "eval.json") as file:
        found = json.load(file)["corrections"]
    edits = sources.read(str(tmp_path / "edits.jsonl"))
    _, held_out = split([*map(records.better_response, edits)], 0.25, 0, exact=True)
    edits = [edit for edit in edits if records.better_response(edit) in held_out]
    trained = LanguageModel.load(tmp_path / "run" / "export", lazy=True)
    expected = correction.evaluate(trained, edits, policies[1])
    for table, other in ((found, expected), (found["gain"], expected["gain"])):
        assert table["sampled"] == pytest.approx(other["sampled"], abs=1e-4)


def test_refused(policies):
    with pytest.raises(InputError, match="some rows are no edits"):
        correction.evaluate(policies[0], [Instruction("a", "", "b")])
    with pytest.raises(InputError, match="no pair is left"):
        correction.evaluate(policies[0], [Edit("repeat dog twice", "", "dog", "dog")])
