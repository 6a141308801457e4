"""From a response to a request, and from a reply to an edit or to the reason why there is none."""

import json

import pytest

from fgrlhf_jax.data import records
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.edits import request as editor
from fgrlhf_jax.feedback.llm import cache
from fgrlhf_jax.feedback.llm.client import Reply
from fgrlhf_jax.runtime.files import write_jsonl

ORIGINAL = "The capital of France is Lyon. It has many parks."
EDITED = "The capital of France is Paris. It has many parks."


TASK = editor.EditTask("1", "What is the capital of France?", "", ORIGINAL)


def reply(text: str, stop: str = "end") -> Reply:
    return Reply(text, stop, 1, 1)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (reply(f"Sure! Here is the edit:\n\n{EDITED}"), ""),
        (reply(EDITED, "length"), "cut"),
        (reply("", "refusal"), "refusal"),
        (reply("I'm sorry, but I can't help with that."), "refusal"),
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
def test_outcomes(said, reason):
    found = editor.parse_reply(said, TASK, 0.5)
    assert found == editor.ParsedEdit("" if reason else EDITED, reason)


def test_a_reply_that_repeats_what_was_asked_is_none():
    fixed = editor.load_template().literal_text
    repeated = (
        f"{EDITED}\n\nNo introduction, no quotation marks, no remarks about what you did."
    )
    assert editor.parse_reply(reply(repeated), TASK, 0.9, fixed).reason == "unparsable"
    assert editor.parse_reply(reply(repeated), TASK, 0.9).reason == ""
    original = f"Tell it: {fixed}"
    edited = original.replace("Tell it", "Tell it so")
    task = TASK._replace(response=original)
    assert editor.parse_reply(reply(edited), task, 0.9, fixed) == (edited, "")


def test_what_the_original_has_itself_may_stay():
    for text in (
        f"Question: {TASK.instruction} Lyon.",
        "Lyon. <think> is a tag, </think> too.",
    ):
        edited = text.replace("Lyon", "Paris")
        task = TASK._replace(response=text)
        assert editor.parse_reply(reply(edited), task) == (edited, "")


def test_a_refusal_may_be_edited():
    original = "I'm sorry, but I can't help with that."
    said = reply("I'm sorry, but I can't help you with that.")
    found = editor.parse_reply(said, TASK._replace(response=original), 0.5)
    assert found == ("I'm sorry, but I can't help you with that.", "")


def test_tasks_of_every_kind_of_row(tmp_path):
    rows = [
        {"instruction": "q1", "output": "a"},
        {"instruction": "q2", "input": "i", "original": "o", "edited": "e", "id": "x/2"},
        {"instruction": "q3", "output_1": "b", "output_2": "w", "preference": 1},
        {"instruction": "q4", "output_1": "w", "output_2": "b", "preference": 2},
        {"instruction": "q5", "output": "", "id": 7},
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    read = records.read_with_rows(str(tmp_path / "rows.jsonl"))
    assert [tuple(task) for task in editor.make_tasks(read)] == [
        ("1", "q1", "", "a"),
        ("x/2", "q2", "i", "o"),
        ("3", "q3", "", "w"),
        ("4", "q4", "", "w"),
        ("7", "q5", "", ""),
    ]
    assert [task.response for task in editor.make_tasks(read, "better")] == [
        "a",
        "o",
        "b",
        "b",
        "",
    ]


def test_the_default_template_shows_the_fields_as_they_are():
    task = editor.EditTask("1", "What is {{ 1 }} < 2?", "", "  A & B\n\nC {% x %}")
    text = editor.load_template().fill((task)._asdict())
    assert text.startswith(
        "Question: What is {{ 1 }} < 2?\n\nResponse:   A & B\n\nC {% x %}\n\n"
    )
    assert "Input" not in text
    with_input = editor.load_template().fill((task._replace(input="the input"))._asdict())
    assert "2?\n\nInput: the input\n\nResponse: " in with_input


def write(path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_template_of_ones_own(tmp_path):
    path = write(tmp_path / "t.txt", "{% for n in range(2) %}{{ response|upper }}{% endfor %}!")
    filled = editor.load_template(path).fill(editor.EditTask("1", "q", "", "abc")._asdict())
    assert filled == "ABCABC!"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "{{ instruction }}",
            "t.txt: does not show {{ response }}; a prompt needs {{ response }}",
        ),
        ("{{ respons }}", "t.txt: there is no field {{ respons }}; did you mean response?"),
        (
            "{{ response }} {{ output }}",
            "there is no field {{ output }}; there are instruction,",
        ),
        ("a\n{{ response }", "t.txt:2: is no jinja2 template ("),
        ("a\n{% if input %}{{ response }}", "t.txt:2: is no jinja2 template ("),
        (
            "{{ response.text }}",
            "t.txt: cannot be filled ('str object' has no attribute 'text'",
        ),
        ("{{ response + 1 }}", "t.txt: cannot be filled ("),
        ("{{ response|nope }}", "t.txt:1: is no jinja2 template (No filter named 'nope'"),
        ("{{ response.__class__ }}", "t.txt: cannot be filled ("),
        ("{% if not input %}{{ response }}{% endif %}", "t.txt: does not show {{ response }}"),
        (b"\xff{{ response }}", "t.txt: cannot be read (invalid UTF-8)"),
        (None, "t.txt: cannot be read (No such file or directory)"),
    ],
)
def test_bad_templates(tmp_path, text, says):
    path = tmp_path / "t.txt"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as error:
        editor.load_template(str(path))
    assert says in str(error.value)


def test_what_was_set_aside_is_counted(tmp_path):
    output = tmp_path / "e.jsonl"
    assert editor.count_rejected([output]) == {}
    reasons = ["cut", "rejected: 400: too long", "cut", "rejected: 413: too\u2028long"]
    rows = [json.dumps({"reason": reason}, ensure_ascii=False) for reason in reasons]
    cache.rejected_path(output).write_text("\n".join(rows) + "\n")
    assert editor.count_rejected([output, tmp_path / "other.jsonl"]) == {
        "cut": 2,
        "rejected": 2,
    }
    cache.rejected_path(output).write_text('{"reason": "cut"}\n[]\n')
    with pytest.raises(InputError, match=r"e\.rejected\.jsonl:2: is no row that was set aside"):
        editor.count_rejected([output])
