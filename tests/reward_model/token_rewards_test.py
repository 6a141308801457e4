"""launch.score's rows from a tiny random reward model: nothing is trained here."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import tiny_cases

from configs import score as score_config
from fgrlhf_jax.data import templates
from fgrlhf_jax.data.alignment import align
from fgrlhf_jax.data.records import Edit, Instruction, Preference
from fgrlhf_jax.data.tokenizers import train_tokenizer
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.reward_model import model as reward
from fgrlhf_jax.reward_model import scorer as reward_eval
from fgrlhf_jax.reward_model import token_rewards
from fgrlhf_jax.runtime import sharding
from fgrlhf_jax.runtime.files import write_jsonl
from launch import score

ROWS = [
    Edit("Say it.", "about the film", "It was a bad, dull film.", "It was a good film."),
    Preference("Which?", "", "the naïve 🙂 one", "another, a far longer one than the first", 1),
    Instruction("Count.", "", "one two three"),
    Edit("Say it.", "", "bad", "bad, but short"),
]
TEXTS = [
    text for row in ROWS for text in dataclasses.asdict(row).values() if isinstance(text, str)
]
# Letters that the tokenizer never saw together, so a token each: wider than the first bucket.
ROWS.append(Instruction("Count.", "", "QXZ" * 22))
NORMALIZATION = reward.Normalization(mean=0.3, std=2.0)
LIMITS = {"batch_size": 4, "max_length": 96}


pytestmark = pytest.mark.usefixtures("quick_compilation")


@functools.cache
def tokenizer():
    return train_tokenizer(TEXTS, 300)


@functools.cache
def scorer(loss="token_edit", head="after", devices=1, template="plain", append_eos=True):
    cfg = dataclasses.replace(tiny_cases.CFG, vocab_size=len(tokenizer()), max_position=96)
    model = reward_eval.make_model(cfg, loss, head)
    data = {
        "template": template,
        "max_length": 96,
        "max_prompt_length": 40,
        "overlong": "truncate",
        "alignment": "levenshtein",
        "append_eos": append_eos,
    }
    mesh = sharding.make_mesh("1,-1,1", devices=jax.devices()[:devices])
    return reward_eval.Scorer(
        model,
        jax.device_put(
            tiny_cases.parameters(model), sharding.shardings(tiny_cases.parameters(model), mesh)
        ),
        tokenizer(),
        reward_eval.Meta(head, {"loss": loss}, NORMALIZATION, data),
        mesh,
    )


def texts_of(row) -> list[str]:
    return [getattr(row, name) for name in token_rewards.RESPONSES[type(row)]]


def ids_of(row, text, append_eos=True) -> tuple[list[int], list[int]]:
    prompt, _ = templates.encode_prompt(tokenizer(), "plain", row.instruction, row.input, 40)
    return prompt, templates.encode_response(tokenizer(), text, append_eos)


@functools.cache
def _values(loss, head):
    one = scorer(loss, head)

    @jax.jit
    def of(tokens, mask):
        return reward.token_values(one.params, tokens, mask, model=one.model)

    return of


def values_of(prompt, response, loss="token_edit", head="after") -> np.ndarray:
    """The head's outputs on the response, scored alone, in a row of some other width."""
    ids = prompt + response
    tokens, mask = np.zeros((1, 100), np.int32), np.arange(100)[None] < len(ids)
    tokens[0, : len(ids)] = ids
    return np.asarray(_values(loss, head)(tokens, mask))[0, len(prompt) : len(ids)]


def flat(scored):
    return [side for sides in scored for side in sides]


@pytest.mark.parametrize("append_eos", [True, False])
def test_tokens_concatenate_to_the_response(append_eos):
    scored = token_rewards.score_rows(
        scorer(append_eos=append_eos), ROWS, calibrated=False, **LIMITS
    )
    for row, sides in zip(ROWS, scored, strict=True):
        for text, side in zip(texts_of(row), sides, strict=True):
            assert "".join(side.tokens) == text + "</s>" * append_eos
            length = len(ids_of(row, text, append_eos)[1])
            assert len(side.tokens) == len(side.rewards) == len(side.changed) == length
            assert all(isinstance(r, float) for r in side.rewards)
    encoded = [ids_of(row, text) for row in ROWS for text in texts_of(row)]
    assert [[side.label for side in sides] for sides in scored] == [
        ["original", "edited"],
        ["output_1", "output_2"],
        ["output"],
        ["original", "edited"],
        ["output"],
    ]
    widths = [len(prompt) + len(ids) for prompt, ids in encoded]
    assert min(widths) < 64 < max(widths)  # more than one shape is in use


@pytest.mark.parametrize("head", ["after", "state_action"])
def test_raw_rewards_are_those_of_the_response_alone(head):
    scored = token_rewards.score_rows(scorer(head=head), ROWS, calibrated=False, **LIMITS)
    for row, sides in zip(ROWS, scored, strict=True):
        for text, side in zip(texts_of(row), sides, strict=True):
            want = values_of(*ids_of(row, text), head=head)
            np.testing.assert_allclose(side.rewards, want, atol=2e-5)
    assert np.std(np.concatenate([side.rewards for side in flat(scored)])) > 0.1


def test_calibrated_rewards_are_centred_and_scaled():
    raw = token_rewards.score_rows(scorer(), ROWS, calibrated=False, **LIMITS)
    calibrated = token_rewards.score_rows(scorer(), ROWS, calibrated=True, **LIMITS)
    for a, b in zip(flat(raw), flat(calibrated), strict=True):
        np.testing.assert_allclose(b.rewards, (np.array(a.rewards) - 0.3) / 2, atol=1e-6)
        assert (a.tokens, a.changed) == (b.tokens, b.changed)


def test_a_sequence_model_scores_the_last_token():
    raw = token_rewards.score_rows(scorer("sequence"), ROWS, calibrated=False, **LIMITS)
    calibrated = token_rewards.score_rows(scorer("sequence"), ROWS, calibrated=True, **LIMITS)
    for row, sides, others in zip(ROWS, raw, calibrated, strict=True):
        for text, side, other in zip(texts_of(row), sides, others, strict=True):
            want = values_of(*ids_of(row, text), loss="sequence")[-1]
            assert side.rewards[-1] == pytest.approx(want, abs=2e-5)
            assert other.rewards[-1] == pytest.approx((want - 0.3) / 2, abs=2e-5)
            assert not any(side.rewards[:-1])
            assert not any(other.rewards[:-1])


def test_changed_tokens_are_the_alignments():
    scored = token_rewards.score_rows(scorer(), ROWS, calibrated=True, **LIMITS)
    for row, sides in zip(ROWS, scored, strict=True):
        if not isinstance(row, Edit):
            assert not any(any(side.changed) for side in sides)
            continue
        edit = align(ids_of(row, row.edited)[1], ids_of(row, row.original)[1])
        assert [side.label for side in sides] == ["original", "edited"]
        assert sides[0].changed == edit.changed_j.tolist()
        assert sides[1].changed == edit.changed_i.tolist()
    replaced, inserted = scored[0], scored[3]
    assert any(replaced[0].changed)
    assert any(replaced[1].changed)
    assert any(inserted[1].changed)
    assert not any(inserted[0].changed)


@pytest.mark.parametrize("batch_size", [3, 16])
def test_rows_keep_their_order_in_batches_of_any_size(batch_size):
    want = token_rewards.score_rows(scorer(), ROWS, calibrated=True, **LIMITS)
    seen = []

    def progress(batches):
        seen.extend(batches)
        return iter(seen)

    got = token_rewards.score_rows(
        scorer(),
        ROWS,
        batch_size=batch_size,
        max_length=96,
        calibrated=True,
        progress=progress,
    )
    for a, b in zip(flat(got), flat(want), strict=True):
        assert a.tokens == b.tokens
        np.testing.assert_allclose(a.rewards, b.rewards, atol=2e-5)
    assert len(seen) == -(-8 // batch_size)


def test_the_devices_need_not_divide_the_batch():
    want = token_rewards.score_rows(scorer(), ROWS, calibrated=True, **LIMITS)
    many = scorer(devices=8)
    got = token_rewards.score_rows(many, ROWS, batch_size=3, max_length=96, calibrated=True)
    for a, b in zip(flat(got), flat(want), strict=True):
        np.testing.assert_allclose(a.rewards, b.rewards, atol=2e-5)


def test_long_responses_lose_their_tail():
    row = ROWS[0]
    prompt, original = ids_of(row, row.original)
    edited = ids_of(row, row.edited)[1]
    kept = min(len(original), len(edited)) - 2
    assert kept > 2
    limits = LIMITS | {"max_length": len(prompt) + kept}
    (whole,) = token_rewards.score_rows(scorer(), [row], calibrated=True, **LIMITS)
    (cut,) = token_rewards.score_rows(scorer(), [row], calibrated=True, **limits)
    for a, b in zip(cut, whole, strict=True):
        assert a.tokens == b.tokens[:kept]
        assert a.changed == b.changed[:kept]  # of the whole responses' alignment
        np.testing.assert_allclose(a.rewards, b.rewards[:kept], atol=2e-5)
    (cut,) = token_rewards.score_rows(scorer("sequence"), [row], calibrated=False, **limits)
    for side, response in zip(cut, (original, edited), strict=True):
        want = values_of(prompt, response[:kept], loss="sequence")[-1]
        assert side.rewards[-1] == pytest.approx(want, abs=2e-5)


@pytest.mark.parametrize("room", [0, -3])
def test_a_prompt_that_leaves_no_room_is_refused(room):
    row = ROWS[0]
    prompt, _ = ids_of(row, row.original)
    limits = LIMITS | {"max_length": len(prompt) + room}
    with pytest.raises(InputError, match=r"row 1: .*max_length"):
        token_rewards.score_rows(scorer(), [row], calibrated=True, **limits)


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (Instruction("Count.", "", ""), "output"),
        (Preference("Which?", "", "one", "", 1), "output_2"),
        (Preference("Which?", "", "", "two", 2), "output_1"),
    ],
)
def test_a_missing_response_is_named(row, field):
    with pytest.raises(InputError, match=rf"row 2: .*'{field}'"):
        token_rewards.score_rows(scorer(), [ROWS[0], row], calibrated=True, **LIMITS)


def test_no_rows_no_scores():
    assert token_rewards.score_rows(scorer(), [], calibrated=True, **LIMITS) == []


@pytest.mark.parametrize(
    ("loss", "head"),
    [("token_full", "state_action"), ("sequence", "after")],
)
def test_the_command_reads_a_saved_model_and_writes_rows(tmp_path, capsys, loss, head):
    """Saving and loading in between: the calibration and the meaning of the numbers survive."""
    one = scorer(loss, head)
    reward_eval.save(tmp_path / "run" / "export", one)
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    config = score_config.get_config()
    config.reward_model = str(tmp_path / "run")
    config.input = str(tmp_path / "rows.jsonl")
    config.output = str(tmp_path / "scored.jsonl")
    score.main(config)
    lines = (tmp_path / "scored.jsonl").read_text(encoding="utf-8").splitlines()
    want = token_rewards.score_rows(one, ROWS, calibrated=True, **LIMITS)
    for line, row, sides in zip(lines, ROWS, want, strict=True):
        found = json.loads(line)
        prefixes = ["", *(f"{side.label}_" for side in sides[1:])]
        for prefix, side in zip(prefixes, sides, strict=True):
            assert found[f"{prefix}tokens"] == side.tokens
            np.testing.assert_allclose(found[f"{prefix}rewards"], side.rewards, atol=2e-5)
        assert found["instruction"] == row.instruction
        assert ("edited_rewards" in found) == isinstance(row, Edit)
    capsys.readouterr()


def test_a_models_meta_survives_its_folder(tmp_path):
    one = scorer("token_full", "state_action", template="alpaca")
    reward_eval.save(tmp_path, one)
    again = reward_eval.load(str(tmp_path), mesh="2,2,2")
    assert again.meta == one.meta
    assert again.meta.level == "token"
    assert dataclasses.replace(again.model.cfg, max_position=96) == one.model.cfg
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(one.params),
        jax.tree.leaves(again.params),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b, err_msg=sharding.path_name(path))


def test_what_is_no_reward_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="run_dir"):
        reward_eval.load(str(tmp_path / "nowhere"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(InputError, match="not a reward model"):
        reward_eval.load(str(tmp_path))
