"""The embedded world's data: reproducible valid records in disjoint sets."""

import hashlib

import numpy as np
import pytest

from fgrlhf_jax.data import sources
from fgrlhf_jax.runtime.files import write_jsonl
from fgrlhf_jax.tiny_world import datasets
from fgrlhf_jax.tiny_world.datasets import make_feedback, make_instructions
from fgrlhf_jax.tiny_world.judge import gold_score
from fgrlhf_jax.tiny_world.people import Rates
from fgrlhf_jax.tiny_world.tasks import MAX_RESPONSE, SET_SHARES, prompt_set
from fgrlhf_jax.tiny_world.words import vocabulary


@pytest.fixture(scope="module")
def world():
    return make_feedback(2000, seed=0)


def test_data_are_a_function_of_the_seed():
    rows = [make_feedback(50, 7), make_instructions(50, "ppo", 7)]
    assert make_feedback(20, 7) == tuple(kind[:20] for kind in rows[0])
    assert make_instructions(20, "ppo", 7) == rows[1][:20]
    texts = [[edit.original for edit in make_feedback(50, seed)[0]] for seed in (7, 8)]
    assert texts[0] != texts[1]  # texts only: ids contain the seed


def test_the_worlds_are_unchanged():
    """Texts equal those of earlier versions in every process, so studies stay comparable."""
    rates, digests = Rates(flaws=2, deletion=0.3), []
    fair = [make_instructions(200, "feedback", seed, rates, "fair") for seed in (7, 8)]
    prompts = [row.instruction for row in fair[0]]
    drafts = [[row.output for row in rows] for rows in fair]
    for feedback, world in (
        (make_feedback(50, 7), "easy"),
        (datasets.collect_feedback(prompts, *drafts, 7, rates), "fair"),
    ):
        texts = [text for e in feedback[0] for text in (e.instruction, e.original, e.edited)]
        texts += [str(preference.preference) for preference in feedback[1]]
        for name in ("sft", "ppo", "test"):
            rows = make_instructions(50, name, 7, world=world)
            texts += [text for row in rows for text in (row.instruction, row.output)]
        digests.append(hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16])
    assert digests == ["c822db1f53fbb4bf", "484ec17a2eae956e"]


def test_edits_and_preferences(world, tmp_path):
    edits, preferences = world
    assert len(edits) == len(preferences) == len({edit.id for edit in edits}) == 2000
    for edit, preference in zip(edits, preferences, strict=True):
        assert (edit.instruction, edit.id) == (preference.instruction, preference.id)
        pair = (preference.output_1, preference.output_2)
        assert edit.original == pair[2 - preference.preference]  # the worse response is edited
        assert edit.original != edit.edited
    assert {prompt_set(edit.instruction) for edit in edits} == {"feedback"}
    assert len({edit.instruction for edit in edits}) == 2000
    texts = [t for e in edits for t in (e.instruction, e.original, e.edited)]
    words = [text.split() for text in texts]
    assert {word for text in words for word in text} == set(vocabulary())
    assert 10 < np.mean([len(text) for text in words[1::3]]) < 14
    assert max(map(len, words)) <= MAX_RESPONSE + 3  # repairs insert missing words

    # They are valid records.
    write_jsonl(tmp_path / "world.jsonl", [*edits, *preferences])
    assert sources.read(str(tmp_path / "world.jsonl")) == [*edits, *preferences]


def test_instructions_of_every_set():
    for name in SET_SHARES:
        rows = make_instructions(70, name, 3)
        assert {prompt_set(row.instruction) for row in rows} == {name}
        assert -0.2 < np.mean([gold_score(row.instruction, row.output) for row in rows]) < 0.7


def test_feedback_on_samples():
    prompt = "capital of peru and cuba"
    right = "the capital of peru is lima and cuba is havana"
    pairs = [
        ("lima", "um giraffe"),
        ("lima", "lima"),  # no preference, but an edit
        ("", "lima"),  # nothing: the worse response is empty
        (right, right),  # nothing: both are right
        ("stupid", right),
    ]
    ones, twos = zip(*pairs, strict=True)
    careful = Rates(temperature=1e-6, repair=1.0, damage=0.0)
    edits, preferences = datasets.collect_feedback([prompt] * 5, ones, twos, 4, careful)
    assert [(p.id, p.preference) for p in preferences] == [("tiny/4/0", 1), ("tiny/4/4", 2)]
    assert [(e.id, e.original, e.edited) for e in edits] == [
        ("tiny/4/0", "um giraffe", right),
        ("tiny/4/1", "lima", right),
        ("tiny/4/4", "stupid", right),
    ]
    again = datasets.collect_feedback([prompt] * 3, ("x", *ones[1:3]), twos[:3], 4, careful)
    assert again[0][1] == edits[1]  # independent of other rows
