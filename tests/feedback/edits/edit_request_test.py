"""Requests for edits, and replies parsed into an edit or the reason why there is none."""

import json
import re
import unicodedata
from pathlib import Path

import pytest

from fgrlhf_jax.data import sources
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.edits import request
from fgrlhf_jax.feedback.edits.request import NAME, EditTask, build_prompt, parse_reply
from fgrlhf_jax.feedback.llm.client import Reply
from fgrlhf_jax.runtime.continued_rows import rejected_path
from fgrlhf_jax.runtime.files import write_jsonl

ORIGINAL = "The capital of France is Lyon. It has many parks."
EDITED = "The capital of France is Paris. It has many parks."
TASK = EditTask("1", "What is the capital of France?", "", ORIGINAL)


def reply(text: str, stop: str = "end") -> Reply:
    return Reply(text, stop, 1, 1)


def tagged(text: str) -> Reply:
    return reply(f"Sure!\n<{NAME}>\n{text}\n</{NAME}>\nI did it.")


@pytest.mark.parametrize(
    ("received", "tag", "reason"),
    [
        *((tagged(text), NAME, "") for text in (EDITED, f"\xa0{EDITED}\xa0")),
        *((tagged(ORIGINAL), NAME, "unchanged"), (tagged(""), NAME, "empty")),
        (tagged(f"Here is the edited response:\n\n{EDITED}"), NAME, ""),
        (reply(json.dumps({NAME: f"Sure! {EDITED}"})), None, "doubtful"),
        (tagged("Dogs bark loudly at night, and nobody in the village sleeps."), NAME, "rewritten"),
        *((reply(text), NAME, "unparsed") for text in (EDITED, json.dumps({NAME: EDITED}))),
        (reply(f"<{NAME}>{EDITED}", "length"), NAME, "cut"),
        (reply(f"<{NAME}>{EDITED}</{NAME}>\n\nI have", "length"), NAME, ""),
        (reply(json.dumps({NAME: EDITED}), "length"), None, "cut"),
        *((reply(EDITED, "length"), "", "cut"), (reply("", "refusal"), NAME, "refusal")),
        *((reply(json.dumps({NAME: EDITED})), None, ""), (tagged(EDITED), None, "unparsed")),
        (reply(json.dumps({NAME: f"{EDITED}\ud83d"})), None, "unparsed"),
        (reply(json.dumps({"answer": f"{EDITED}\ud83d"})), "", "unparsed"),
        (reply(json.dumps({"response": EDITED})), None, "unparsed"),
        *((reply(EDITED), "", ""), (reply(""), "", "empty")),
        (reply(f"Hier ist sie:\n\n{EDITED}<|eot_id|>"), "", ""),
        (reply("Hier ist sie:\n\n"), "", "doubtful"),
    ],
)
def test_replies(received, tag, reason):
    parsed = parse_reply(received, TASK, 0.5, tag=tag)
    assert parsed[:2] == ("" if reason else EDITED, reason)
    is_wrapped = any(sign in received.text for sign in ("“", "Hier ist", "Here is"))
    assert parsed.unwrapped == is_wrapped * (not reason)


@pytest.mark.parametrize(
    ("original", "replied", "edited"),
    [
        ("A b.\r\nC d.\r\n", "A x.\nC d.", "A x.\r\nC d.\r\n"),
        ("A b.\r\nC d.", "A b.\nNew.\nC x.", "A b.\r\nNew.\r\nC x."),
        ("A b.\r\nC d.\ne\rf", "A x.\nC d.\ne\nf", "A x.\r\nC d.\ne\rf"),
        *(("A b.\nC d.", "A x.\r\nC d.", "A x.\nC d."), (" \n A b. \n", "A x.", " \n A x. \n")),
        ("A\xa0b  c. \n\n  d e", "A b c.\n\n  d x", "A\xa0b  c. \n\n  d x"),
        ("if a:\n    b = 1", "if a:\n  b = 2", "if a:\n  b = 2"),
        ("A b c.", "\ufeffA\u200b b x\xady.\u2060", "A b xy."),
        ("A b\xadb\u200b c.", "A bb x.", "A b\xadb\u200b x."),
        ("\u200fאב\u200f (c)!", "אב (x)!", "\u200fאב\u200f (x)!"),
        ('It\'s "a" b c.', "It’s “a” b x.", 'It\'s "a" b x.'),
        ("„A“ – it’s b.", '"A" – it\'s x.', "„A“ – it’s x."),
        *(("A ❤ b.", "A ❤\ufe0f x.", "A ❤ x."), ("A b\x02 c.", "A\x00 b x.\x7f", "A b\x02 x.")),
        ("print(“a”)", 'print("a")', 'print("a")'),  # the edit itself
    ],
)
def test_invisible_characters_stay_as_in_the_original(original, replied, edited):
    assert parse_reply(tagged(replied), TASK._replace(response=original), tag=NAME).edited == edited


@pytest.mark.parametrize("text", ["Der Käfer läuft.", "がぎぐ が好き", "Tiếng Việt đẹp", "한국어"])
@pytest.mark.parametrize(("original", "other"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_normal_forms_stay_as_in_the_original(text, original, other):
    task = TASK._replace(response=unicodedata.normalize(original, text))
    replied, expected = (unicodedata.normalize(f, f"{text} – wörter") for f in (other, original))
    assert parse_reply(tagged(replied), task, tag=NAME).edited == expected
    same = tagged(unicodedata.normalize(other, text))
    assert parse_reply(same, task, tag=NAME).reason == "unchanged"


def test_a_reply_that_repeats_the_template_is_no_edit():
    fixed = request.load_template().literal_text
    repeated = f"{EDITED} Please make minimal changes to the above response in order to."
    assert parse_reply(tagged(repeated), TASK, 0.9, tag=NAME, template_text=fixed).reason
    task = TASK._replace(response=repeated.replace("Paris", "Lyon"))
    assert not parse_reply(tagged(repeated), task, tag=NAME, template_text=fixed).reason


def test_the_tag_of_a_reply_occurs_in_no_text_of_the_prompt():
    template = request.load_template()
    prompt, tag = build_prompt(TASK, template)
    assert (tag, f"between <{NAME}> and </{NAME}>" in prompt) == (NAME, True)
    assert prompt.endswith(f"\n\n{request.describe_form(NAME)}")
    task = TASK._replace(response=f"Write <{NAME.upper()}>.", input=f"{NAME}_2")
    prompt, tag = build_prompt(task, template)
    assert (tag, prompt.count(f"<{NAME}_3>")) == (f"{NAME}_3", 1)
    prompt, tag = build_prompt(TASK, template, as_json=True)
    assert (tag, f"<{NAME}>" in prompt) == (None, False)
    assert f"the field {NAME} of one JSON object" in prompt
    for form in (True, False):
        prompt, tag = build_prompt(TASK, request.load_template(name="paper"), as_json=form)
        assert (tag, NAME in prompt) == (None if form else "", False)
        assert "make minimal changes to the above response" in prompt


def test_tasks_of_every_kind_of_row():
    rows = [
        {"instruction": "q1", "output": "a"},
        {"instruction": "q2", "input": "i", "original": "o", "edited": "e", "id": "x/2"},
        {"instruction": "q3", "output_1": "b", "output_2": "w", "preference": 1},
        {"instruction": "q4", "output_1": "w", "output_2": "b", "preference": 2},
        {"instruction": "q5", "output": "", "id": 7},
    ]
    write_jsonl("rows.jsonl", rows)
    rows = sources.read_with_rows("rows.jsonl")
    tasks = [("1", "q1", "", "a"), ("x/2", "q2", "i", "o"), ("3", "q3", "", "w")]
    tasks += [("4", "q4", "", "w"), ("7", "q5", "", "")]
    assert [task[:4] for task in request.make_tasks(rows)] == tasks
    assert [task.response for task in request.make_tasks(rows, "better")] == [*"aobb", ""]


def test_a_template_shows_the_fields_unchanged():
    task = EditTask("1", "What is {{ 1 }} < 2?", "", "  A & B\n\nC {% x %}")
    prompt, _ = build_prompt(task, request.load_template())
    assert prompt.startswith("Question: What is {{ 1 }} < 2?\n\nResponse:   A & B\n\nC {% x %}\n\n")
    assert "Input" not in prompt
    prompt, _ = build_prompt(task._replace(input="the input"), request.load_template())
    assert "2?\n\nInput: the input\n\nResponse: " in prompt
    Path("t.txt").write_text("{% for n in range(2) %}{{ response|upper }}{% endfor %}!")
    template = request.load_template("t.txt")
    assert build_prompt(EditTask("1", "q", "", "abc"), template) == ("ABCABC!", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ respons }}", "there is no field {{ respons }}; did you mean response?"),
        ("{{ response }} {{ x }}", "there is no field {{ x }}; there are instruction, input,"),
        ("a\n{{ response }", "t.txt:2: is not a jinja2 template ("),
        ("{{ response.text }}", "cannot be filled ('str object' has no attribute 'text'"),
        ("{{ response.__class__ }}", "t.txt: cannot be filled ("),
        ("{% if not input %}{{ response }}{% endif %}", "t.txt: does not show {{ response }}"),
        (b"\xff{{ response }}", "t.txt: cannot be read (invalid UTF-8)"),
        (None, "t.txt: cannot be read (No such file or directory)"),
    ],
)
def test_bad_templates(text, message):
    if text is not None:
        Path("t.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=re.escape(message)):
        request.load_template("t.txt")


def test_rejected_rows_are_counted(output):
    assert request.count_rejected([output]) == {}
    reasons = ["cut", "rejected: 400: too long", "cut", "rejected: 413: too\u2028long"]
    rows = [json.dumps({"reason": reason}, ensure_ascii=False) for reason in reasons]
    rejected_path(output).write_text("\n".join(rows) + "\n")
    assert request.count_rejected([output, Path("other.jsonl")]) == {"cut": 2, "rejected": 2}
    rejected_path(output).write_text('{"reason": "cut"}\n[]\n')
    with pytest.raises(InputError, match=r"edits\.rejected\.jsonl:2: is not a rejected row"):
        request.count_rejected([output])
