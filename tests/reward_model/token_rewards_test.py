"""launch.score's rows from a tiny random reward model: nothing is trained here."""

import dataclasses
import functools
import json

import chex
import jax
import numpy as np
import pandas
import pytest
import tiny_cases

from configs import score as score_config
from fgrlhf_jax.data import templates
from fgrlhf_jax.data.alignment import align
from fgrlhf_jax.data.records import RESPONSES, Edit, Instruction, Preference
from fgrlhf_jax.data.tokenizers import train_tokenizer
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.models import heads
from fgrlhf_jax.report import heatmap
from fgrlhf_jax.reward_model import scorer
from fgrlhf_jax.reward_model.model import Normalization, score_tokens
from fgrlhf_jax.reward_model.modules import RewardMeta, make_module
from fgrlhf_jax.reward_model.scorer import RewardModel
from fgrlhf_jax.reward_model.token_rewards import as_records
from fgrlhf_jax.runtime import sharding
from fgrlhf_jax.runtime.files import write_jsonl
from launch import score

ROWS = [
    Edit("Say it.", "about the film", "It was a bad, dull film.", "It was a good film."),
    Preference("Which?", "", "the naïve 🙂 one", "another, a far longer one than the first", 1),
    Instruction("Count.", "", "one two three"),
    Edit("Say it.", "", "bad", "bad, but short"),
]
TEXTS = [text for row in ROWS for text in dataclasses.asdict(row).values() if isinstance(text, str)]
# Letters that the tokenizer never saw together, so a token each: wider than the first bucket.
ROWS.append(Instruction("Count.", "", "QXZ" * 22))
NORMALIZATION = Normalization(mean=0.3, std=2.0)


@functools.cache
def tokenizer():
    return train_tokenizer(TEXTS, 300)


@functools.cache
def reward_model(loss="token_edit", head="after", devices=1, template="plain", append_eos=True):
    cfg = dataclasses.replace(tiny_cases.CFG, vocab_size=len(tokenizer()), max_position=96)
    module = make_module(cfg, loss, head)
    data = {"max_length": 96, "max_prompt_length": 40, "overlong": "truncate"}
    data |= {"template": template, "alignment": "levenshtein", "append_eos": append_eos}
    mesh = sharding.make_mesh("1,-1,1", devices=jax.devices()[:devices])
    params = tiny_cases.parameters(module)
    params = jax.device_put(params, sharding.shardings(params, mesh))
    meta = RewardMeta(head, {"loss": loss}, NORMALIZATION, data)
    return RewardModel(module, params, tokenizer(), meta, mesh)


@functools.cache
def scored(loss="token_edit", head="after", normalized=False):
    return reward_model(loss, head).score_all(ROWS, normalized=normalized)


def texts_of(row) -> list[str]:
    return [getattr(row, name) for name in RESPONSES[type(row)]]


def ids_of(row, text, append_eos=True) -> tuple[list[int], list[int]]:
    ids, start, _ = templates.encode_response(tokenizer(), "plain", row, text, append_eos)
    return ids[:start], ids[start:]


def values_of(prompt, response, loss="token_edit", head="after") -> np.ndarray:
    """The head's outputs on the response, scored alone, in a row of some other width."""
    ids = prompt + response
    tokens, mask = np.zeros((1, 100), np.int32), np.arange(100)[None] < len(ids)
    tokens[0, : len(ids)] = ids
    model = reward_model(loss, head)
    values = score_tokens(model.params, tokens, mask, model=model.module, level="token")
    return np.asarray(values)[0, len(prompt) : len(ids)]


def flat(rows):
    return [response for responses in rows for response in responses]


def same(ours, theirs):
    for a, b in zip(flat(ours), flat(theirs), strict=True):
        assert (a.label, a.tokens, a.changed) == (b.label, b.tokens, b.changed)
        np.testing.assert_allclose(a.rewards, b.rewards, atol=2e-5)


@pytest.mark.parametrize("append_eos", [True, False])
def test_tokens_concatenate_to_the_response(append_eos):
    rows = reward_model(append_eos=append_eos).score_all(ROWS)
    for row, responses in zip(ROWS, rows, strict=True):
        assert [each.label for each in responses] == list(RESPONSES[type(row)])
        for text, each in zip(texts_of(row), responses, strict=True):
            assert "".join(each.tokens) == text + "</s>" * append_eos
            length = len(ids_of(row, text, append_eos)[1])
            assert len(each.tokens) == len(each.rewards) == len(each.changed) == length
            assert all(isinstance(r, float) for r in each.rewards)
    encoded = [ids_of(row, text) for row in ROWS for text in texts_of(row)]
    widths = [len(prompt) + len(ids) for prompt, ids in encoded]
    assert min(widths) < 64 < max(widths)  # more than one shape is in use


@pytest.mark.parametrize("head", heads.HEADS)
def test_raw_rewards_are_those_of_the_response_alone(head):
    for row, responses in zip(ROWS, scored(head=head), strict=True):
        for text, each in zip(texts_of(row), responses, strict=True):
            want = values_of(*ids_of(row, text), head=head)
            np.testing.assert_allclose(each.rewards, want, atol=2e-5)
    assert np.std(np.concatenate([each.rewards for each in flat(scored(head=head))])) > 0.1


def test_a_sequence_model_scores_the_last_token():
    normalized = flat(scored("sequence", normalized=True))
    ids = [ids_of(row, text) for row in ROWS for text in texts_of(row)]
    for each, other, response in zip(flat(scored("sequence")), normalized, ids, strict=True):
        want = values_of(*response, loss="sequence")[-1]
        assert each.rewards[-1] == pytest.approx(want, abs=2e-5)
        assert other.rewards[-1] == pytest.approx((want - 0.3) / 2, abs=2e-5)
        assert not any(each.rewards[:-1] + other.rewards[:-1])


def test_changed_tokens_are_the_alignments():
    for row, responses in zip(ROWS, scored(), strict=True):
        if isinstance(row, Edit):
            edit = align(ids_of(row, row.edited)[1], ids_of(row, row.original)[1])
            assert responses[0].changed == edit.changed_j.tolist()
            assert responses[1].changed == edit.changed_i.tolist()
        else:
            assert not any(any(each.changed) for each in responses)
    replaced, inserted = scored()[0], scored()[3]
    assert [any(each.changed) for each in replaced] == [True, True]
    assert [any(each.changed) for each in inserted] == [False, True]


def test_score_gives_the_first_response_of_records_or_mappings(monkeypatch):
    """Fewer rows of the same width compile nothing again."""
    monkeypatch.setattr(scorer, "score_tokens", tiny_cases.traced_once(score_tokens))
    rows = [*ROWS, {"instruction": "Say it.", "input": None, "output": "bad"}]
    responses = reward_model().score(rows, normalized=False)
    for each, (want, *_) in zip(responses, [*scored(), scored()[3]], strict=True):
        assert each.tokens == want.tokens
        np.testing.assert_allclose(each.rewards, want.rewards, atol=2e-5)
        assert list(each) == [*zip(each.tokens, each.rewards, strict=True)]
    (wide,) = reward_model().score(ROWS[4:], normalized=False)
    np.testing.assert_allclose(wide.rewards, scored()[4][0].rewards, atol=2e-5)
    assert reward_model().score([]) == []
    assert "Array" not in repr(reward_model())


@pytest.mark.parametrize("devices", [1, 8])
def test_rows_keep_their_order_in_batches_of_any_size_on_any_mesh(devices):
    batches = []
    options = {"progress": lambda planned: batches.extend(planned) or batches}
    model = reward_model(devices=devices)
    same(model.score_all(ROWS, normalized=False, batch_size=3, **options), scored())
    assert len(batches) == -(-8 // max(3, devices))


def test_long_responses_lose_their_tail():
    row = ROWS[0]
    prompt, original = ids_of(row, row.original)
    edited = ids_of(row, row.edited)[1]
    room = min(len(original), len(edited)) - 2
    assert room > 2
    options = {"max_length": len(prompt) + room, "normalized": False}
    (cut,) = reward_model().score_all([row], **options)
    for a, b in zip(cut, scored()[0], strict=True):
        assert a.tokens == b.tokens[:room]
        assert a.changed == b.changed[:room]  # of the whole responses' alignment
        np.testing.assert_allclose(a.rewards, b.rewards[:room], atol=2e-5)
    (cut,) = reward_model("sequence").score_all([row], **options)
    for each, response in zip(cut, (original, edited), strict=True):
        want = values_of(prompt, response[:room], loss="sequence")[-1]
        assert each.rewards[-1] == pytest.approx(want, abs=2e-5)


@pytest.mark.parametrize(
    ("row", "room", "message"),
    [
        (ROWS[0], 0, r"row 2: its prompt of .*max_length"),
        (Instruction("Count.", "", ""), 50, r"row 2: .*'output'"),
        (Preference("Which?", "", "one", "", 1), 50, r"row 2: .*'output_2'"),
        ({"instruction": "Count."}, 50, r"row 2: .*'output'"),
        (("Count.", "1, 2"), 50, r"row 2: is not an object; each row is {field: value"),
        (ROWS[0], 1000, r"more than the model's 96 positions"),
    ],
)
def test_what_cannot_be_scored_is_refused(row, room, message):
    prompt, _ = ids_of(ROWS[0], "")
    with pytest.raises(InputError, match=message):
        reward_model().score_all([ROWS[2], row], max_length=len(prompt) + room)


def test_records_are_a_list_or_a_frame():
    row = {"instruction": "Count.", "output": "1, 2"}
    assert as_records(pandas.DataFrame([row])) == [Instruction("Count.", "", "1, 2")]
    for single in ("Count.", row, Instruction("Count.", "", "1, 2")):
        with pytest.raises(InputError, match="is one record; give a list of records"):
            as_records(single)


def test_a_page_says_what_its_texts_are():
    rows = [ROWS[1], dataclasses.replace(ROWS[2], finished=False), ROWS[0]]
    views = [*map(score.view, rows, [scored()[n] for n in (1, 2, 0)])]
    pages = [heatmap.to_html(shown, title="") for shown in (views[:2], views)]
    for text in ("output_1, preferred<", "output_2, rejected<", ", cut at the length limit<"):
        assert pages[0].count(text) == 1
    assert ["removed by the edit" in page for page in pages] == [False, True]


@pytest.mark.parametrize(
    ("loss", "head"), [("token_full", "state_action"), ("sequence", "after"), ("tlcr", "action")]
)
def test_the_command_reads_a_saved_model_and_writes_rows(tmp_path, capsys, loss, head):
    """Saving and loading in between: the calibration and the meaning of the numbers survive."""
    model = reward_model(loss, head)
    model.save(tmp_path / "run" / "export")
    again = RewardModel.load(tmp_path / "run", mesh="2,2,2")
    assert (again.meta, again.module) == (model.meta, model.module)
    chex.assert_trees_all_equal(jax.device_get(model.params), jax.device_get(again.params))
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    config = score_config.get_config()
    files = {"reward_model": "run", "input": "rows.jsonl", "output": "scored.jsonl"}
    config.update({field: str(tmp_path / name) for field, name in files.items()})
    score.main(config)
    lines = (tmp_path / "scored.jsonl").read_text(encoding="utf-8").splitlines()
    want = scored(loss, head, normalized=True)
    for line, row, responses in zip(lines, ROWS, want, strict=True):
        written = json.loads(line)
        prefixes = ["", *(f"{each.label}_" for each in responses[1:])]
        for prefix, each in zip(prefixes, responses, strict=True):
            assert written[f"{prefix}tokens"] == each.tokens
            np.testing.assert_allclose(written[f"{prefix}rewards"], each.rewards, atol=2e-5)
        assert written["instruction"] == row.instruction
        assert ("edited_rewards" in written) == isinstance(row, Edit)
    capsys.readouterr()
