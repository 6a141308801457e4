"""A run of RLOO by adapters that imitates edits beside: no critic anywhere, and it resumes."""

import contextlib
import io
from pathlib import Path

import hf_cases
import numpy as np
import ppo_cases
import pytest
from ppo_cases import same_run
from rm_cases import rows, saved, unexplained

from fgrlhf_jax.data.records import Instruction
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.ppo import imitation, programs, rollout
from fgrlhf_jax.runtime import metric_log
from fgrlhf_jax.runtime.checkpoint import Checkpoints
from fgrlhf_jax.runtime.files import write_jsonl
from fgrlhf_jax.tiny_world.datasets import make_feedback

pytest_plugins = ["runs"]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_process")]

widths = programs.row_widths


@pytest.fixture(scope="module")
def fields(world, tmp_path_factory):
    """Of a run with adapters of the policy, and rows of two widths; its reward model is one too."""
    folder = tmp_path_factory.mktemp("rloo")
    edits, _ = make_feedback(24, 0)
    write_jsonl(folder / "edits.jsonl", edits)
    adapter = ppo_cases.save_reward_model(folder / "rm", "token_edit", base=world.policy)

    def make(run_dir: Path, **changes) -> dict:
        fields = {"reward_model": adapter, "algorithm": "rloo", "data__max_new_tokens": 16}
        fields |= {"ptx_weight": 0.5, "ptx_edits": folder / "edits.jsonl"}
        fields |= {f"lora__{name}": value for name, value in vars(hf_cases.ADAPTER).items()}
        return ppo_cases.fields(world, run_dir, **fields | changes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "row_widths", lambda *sizes: (18, *widths(*sizes)))
        yield make


@pytest.fixture(scope="module")
def rloo_run(in_process, fields, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "rloo"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        ppo_cases.run(fields(run_dir))
    assert " 0 compilations after the first update" in out.getvalue()
    return run_dir


def test_there_is_no_critic_and_the_edits_become_more_likely(rloo_run):
    """No critic in the numbers of a step nor in a checkpoint."""
    _, *steps = rows(rloo_run)
    assert not [name for row in steps for name in row if name.startswith("value/")]
    assert not unexplained(steps[-1])
    layouts = Checkpoints(rloo_run / "checkpoints")._metadata(max(saved(rloo_run)))["layouts"]
    assert not [name for name in layouts["params"] if name.startswith("critic")]
    losses = [row["ptx/loss"] for row in steps if "ptx/loss" in row]
    assert losses[-1] < losses[0] - 0.05


def test_a_prompt_has_its_samples_in_a_row(fields, tmp_path, monkeypatch):
    seen, roll_out = [], rollout.roll_out

    def watched(context, params, normalization, prompts, key, *, learning):
        if learning:
            seen.append(prompts.texts)
        return roll_out(context, params, normalization, prompts, key, learning=learning)

    monkeypatch.setattr(rollout, "roll_out", watched)
    ppo_cases.run(fields(tmp_path / "run", steps=2))
    for texts in seen:
        assert texts == [text for text in texts[::4] for _ in range(4)]
        assert len(set(texts)) == 4


def test_a_run_that_crashes_goes_on_as_if_nothing_had_happened(fields, rloo_run, tmp_path):
    """The third step was not saved, and is repeated; it may as well have been killed there."""
    to_floats, calls = metric_log.to_floats, []

    def crash(tree):
        calls.append(tree)
        if len(calls) == 3:
            raise MemoryError
        return to_floats(tree)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metric_log, "to_floats", crash)
        with pytest.raises(MemoryError):
            ppo_cases.run(fields(tmp_path / "run"))
    assert max(saved(tmp_path / "run")) == 2
    ppo_cases.run(fields(tmp_path / "run"))
    same_run(tmp_path / "run", rloo_run)


@pytest.mark.parametrize(("overlong", "kept"), [("drop", 12), ("truncate", 20)])
def test_every_demonstration_is_imitated_once_before_any_is_again(fields, overlong, kept):
    """Two updates a step; longer responses than are sampled are left out or cut."""
    records = [Instruction("word", "", " ".join(["red"] * (1 + n))) for n in range(20)]
    changes = {"data__overlong": overlong, "data__max_new_tokens": 13, "minibatch_size": 4}
    config = ppo_cases.parse(fields(Path("run"), **changes, rollout_batch_size=8, ppo_epochs=1))
    rows = imitation.encode(records, config, ppo_cases.TOKENIZER, "plain")
    assert len(rows) == kept
    assert {len(row.tokens) - row.prompt_length for row in rows} == set(range(2, 14))
    drawn = [imitation.draw(rows, config, 24, step) for step in range(kept // 4)]
    assert drawn[0].tokens_BS.shape == (2, 4, 24)
    first = [update.tobytes() for step in drawn for update in step.tokens_BS][: kept // 4]
    seen = np.concatenate([np.frombuffer(x, np.int32).reshape(4, 24) for x in first])
    padded = np.stack([np.pad(row.tokens, (0, 24 - len(row.tokens))) for row in rows])
    np.testing.assert_array_equal(np.sort(seen, axis=0), np.sort(padded, axis=0))
    np.testing.assert_array_equal(imitation.draw(rows, config, 24, 1).tokens_BS, drawn[1].tokens_BS)
    config.minibatch_size = 64
    with pytest.raises(InputError, match=f"{kept} are left to imitate, fewer than minibatch_size"):
        imitation.encode(records, config, ppo_cases.TOKENIZER, "plain")
