"""A file of rows is continued after an interruption; shown with rows of an LLM's replies."""

import contextlib
import errno
import os

import pytest
from request_cases import FakeModel, cached_prompts, questions, save

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.llm.client import Rejected, Request
from fgrlhf_jax.runtime import files


def test_a_torn_last_line_is_cut_and_rows_that_exist_are_not_sent_again(tmp_path):
    save(questions(9), FakeModel(), tmp_path)
    path = tmp_path / "out.jsonl"
    complete = path.read_bytes()
    torn = [complete[:-cut] for cut in (1, 5, len(complete) // 2, len(complete))]
    for content in (*torn, complete + b'{"prom'):
        path.write_bytes(content)
        assert save(questions(9), FakeModel(lambda *args: AssertionError()), tmp_path) == (9, 0)
        assert path.read_bytes() == complete
    for path in tmp_path.glob("*cache*"):
        path.unlink()
    send = FakeModel()
    assert save(questions(12), send, tmp_path) == (12, 0)
    assert sorted(send.prompts) == ["question 10", "question 11", "question 9"]


@pytest.mark.parametrize(
    ("requests", "place"),
    [
        ([*questions(3), Request("other"), *questions(9)[4:]], r"out.jsonl:3: .* row 4 "),
        (questions(9)[1:], r"out.jsonl:1: .* row 1 "),
        (questions(5), r"out.jsonl:5: .* row 6 "),
        ([*questions(2), *questions(9)[3:]], r"out.rejected.jsonl:1: .* row 9 "),
        ([], r"out.jsonl:1: .* row 1 "),
    ],
)
def test_a_changed_input_is_refused(tmp_path, requests, place):
    send = FakeModel(lambda prompt, before: Rejected("no") if prompt.endswith("2") else None)
    assert save(questions(9), send, tmp_path) == (8, 1)
    before = (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(InputError, match=rf"{place}.*has changed"):
        save(requests, send, tmp_path)
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_an_output_that_cannot_be_written(tmp_path):
    path, send = tmp_path / "out.jsonl", FakeModel()
    for line in ('{"prompt": "a"}', "[1]", "text", '{"request_key": 3}'):  # another program's
        path.write_text(f"{line}\nlast")
        with pytest.raises(InputError, match=r"out.jsonl:1: "):
            save(questions(3), send, tmp_path)
        assert path.read_text() == f"{line}\nlast"
    path.unlink()
    with pytest.raises(InputError, match=r"out.jsonl: cannot be written \(No such file"):
        save(questions(1), send, tmp_path / "nowhere")
    in_use = pytest.raises(InputError, match="another process is writing it")
    with contextlib.closing(files.Lock(tmp_path / ".out.jsonl.lock")), in_use:
        save(questions(2), send, tmp_path)
    assert save(questions(2), send, tmp_path) == (2, 0)


def test_a_full_disk_loses_no_reply(tmp_path, monkeypatch):
    send, fsync, calls = FakeModel(), os.fsync, []

    def full(number):
        calls.append(number)
        if len(calls) == 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(number)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"out.jsonl: cannot be written \(No space left"):
        save(questions(20), send, tmp_path)
    assert len(files.read_jsonl(tmp_path / "out.jsonl")) == 5
    cached, before = cached_prompts(tmp_path, questions(20)), len(send.prompts)
    assert len(cached) == before
    assert save(questions(20), send, tmp_path) == (20, 0)
    assert not cached & set(send.prompts[before:])
