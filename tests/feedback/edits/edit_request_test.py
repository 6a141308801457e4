"""From a response to a request, and from a reply to an edit or to the reason why there is none."""

import json

import pytest

from fgrlhf_jax.data import records
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.edits.request import (
    EditTask,
    count_rejected,
    load_template,
    make_tasks,
    parse_reply,
)
from fgrlhf_jax.feedback.llm.cache import rejected_path
from fgrlhf_jax.feedback.llm.client import Reply
from fgrlhf_jax.runtime.files import write_jsonl

ORIGINAL = "The capital of France is Lyon. It has many parks."
EDITED = "The capital of France is Paris. It has many parks."
TASK = EditTask("1", "What is the capital of France?", "", ORIGINAL)
REFUSAL = "I'm sorry, but I can't help with that."


def reply(text: str, stop: str = "end") -> Reply:
    return Reply(text, stop, 1, 1)


@pytest.mark.parametrize(
    ("received", "reason"),
    [
        (reply(f"Sure! Here is the edit:\n\n{EDITED}"), ""),
        (reply(EDITED, "length"), "cut"),
        (reply("", "refusal"), "refusal"),
        (reply(REFUSAL), "refusal"),
        (reply(""), "empty"),
        (reply("Here is the edited response:\n"), "empty"),
        (reply(ORIGINAL), "unchanged"),
        (reply(f"Here is the edited response:\n\n“{ORIGINAL}”"), "unchanged"),
        (reply("No changes are needed; the response is already good."), "unchanged"),
        (reply("Dogs bark loudly at night, and nobody in the village sleeps."), "rewritten"),
        (reply(f"Option 1: {EDITED}\nOption 2: It is Paris."), "unparsable"),
        (reply(f"<think>\nThe capital is {EDITED}"), "unparsable"),
        (reply(f"It is Paris.\n</think>\n\n{EDITED}"), ""),
        (reply(f"It is Paris.\n</think>\n\n<thinking>\n{EDITED}"), "unparsable"),
        (reply(f"{EDITED}\n</think>"), "empty"),
        (reply(f"Question: {TASK.instruction}\n\nResponse: {EDITED}"), ""),
        (reply(f"Question: {TASK.instruction}\n\n{EDITED}"), "unparsable"),
        (reply(f"**Question:** {TASK.instruction} {EDITED}"), "unparsable"),
    ],
)
def test_replies(received, reason):
    assert parse_reply(received, TASK, 0.5) == ("" if reason else EDITED, reason)


def test_a_reply_that_repeats_the_template_is_no_edit():
    fixed = load_template().literal_text
    repeated = f"{EDITED}\n\nNo introduction, no quotation marks, no remarks about what you did."
    assert parse_reply(reply(repeated), TASK, 0.9, fixed).reason == "unparsable"
    assert parse_reply(reply(repeated), TASK, 0.9).reason == ""


@pytest.mark.parametrize(
    ("original", "edited"),
    [
        (f"Tell it: {load_template().literal_text}", ("Tell it", "Tell it so")),
        (f"Question: {TASK.instruction} Lyon.", ("Lyon", "Paris")),
        ("Lyon. <think> is a tag, </think> too.", ("Lyon", "Paris")),
        (REFUSAL, ("help with", "help you with")),
    ],
)
def test_what_the_original_has_itself_may_stay(original, edited):
    edited, task = original.replace(*edited), TASK._replace(response=original)
    fixed = load_template().literal_text
    assert parse_reply(reply(edited), task, 0.5, fixed) == (edited, "")


def test_tasks_of_every_kind_of_row(tmp_path):
    rows = [
        {"instruction": "q1", "output": "a"},
        {"instruction": "q2", "input": "i", "original": "o", "edited": "e", "id": "x/2"},
        {"instruction": "q3", "output_1": "b", "output_2": "w", "preference": 1},
        {"instruction": "q4", "output_1": "w", "output_2": "b", "preference": 2},
        {"instruction": "q5", "output": "", "id": 7},
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    rows = records.read_with_rows(str(tmp_path / "rows.jsonl"))
    assert make_tasks(rows) == [
        ("1", "q1", "", "a"),
        ("x/2", "q2", "i", "o"),
        ("3", "q3", "", "w"),
        ("4", "q4", "", "w"),
        ("7", "q5", "", ""),
    ]
    assert [task.response for task in make_tasks(rows, "better")] == ["a", "o", "b", "b", ""]


def filled(task: EditTask, path: str = "") -> str:
    return load_template(path).fill(task._asdict())


def test_the_default_template_shows_the_fields_as_they_are():
    task = EditTask("1", "What is {{ 1 }} < 2?", "", "  A & B\n\nC {% x %}")
    prompt = filled(task)
    assert prompt.startswith("Question: What is {{ 1 }} < 2?\n\nResponse:   A & B\n\nC {% x %}\n\n")
    assert "Input" not in prompt
    assert "2?\n\nInput: the input\n\nResponse: " in filled(task._replace(input="the input"))


def test_a_template_of_ones_own(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("{% for n in range(2) %}{{ response|upper }}{% endfor %}!")
    assert filled(EditTask("1", "q", "", "abc"), str(path)) == "ABCABC!"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ instruction }}", "does not show {{ response }}; a prompt needs {{ response }}"),
        ("{{ respons }}", "there is no field {{ respons }}; did you mean response?"),
        ("{{ response }} {{ x }}", "there is no field {{ x }}; there are instruction, input,"),
        ("a\n{{ response }", "t.txt:2: is no jinja2 template ("),
        ("a\n{% if input %}{{ response }}", "t.txt:2: is no jinja2 template ("),
        ("{{ response.text }}", "cannot be filled ('str object' has no attribute 'text'"),
        ("{{ response + 1 }}", "t.txt: cannot be filled ("),
        ("{{ response|nope }}", "t.txt:1: is no jinja2 template (No filter named 'nope'"),
        ("{{ response.__class__ }}", "t.txt: cannot be filled ("),
        ("{% if not input %}{{ response }}{% endif %}", "t.txt: does not show {{ response }}"),
        (b"\xff{{ response }}", "t.txt: cannot be read (invalid UTF-8)"),
        (None, "t.txt: cannot be read (No such file or directory)"),
    ],
)
def test_bad_templates(tmp_path, text, message):
    path = tmp_path / "t.txt"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as error:
        load_template(str(path))
    assert message in str(error.value)


def test_rejected_rows_are_counted(tmp_path):
    output = tmp_path / "e.jsonl"
    assert count_rejected([output]) == {}
    reasons = ["cut", "rejected: 400: too long", "cut", "rejected: 413: too\u2028long"]
    rows = [json.dumps({"reason": reason}, ensure_ascii=False) for reason in reasons]
    rejected_path(output).write_text("\n".join(rows) + "\n")
    assert count_rejected([output, tmp_path / "other.jsonl"]) == {"cut": 2, "rejected": 2}
    rejected_path(output).write_text('{"reason": "cut"}\n[]\n')
    with pytest.raises(InputError, match=r"e\.rejected\.jsonl:2: is no row that was set aside"):
        count_rejected([output])
