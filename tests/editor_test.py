"""From a response to a request, and from a reply to the edit in it, whatever stands around it."""

import itertools
import json
import random

import pytest

from fgrlhf_jax import records
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback import durable, editor
from fgrlhf_jax.feedback.llm import Reply
from fgrlhf_jax.feedback.unwrap import unwrap

ORIGINAL = "The capital of France is Lyon. It has many parks."
EDITED = "The capital of France is Paris. It has many parks."

LEAD_INS = [
    "",
    "Here is my attempt to make minimal changes to improve the response:\n\n",
    "Here is my attempt to make minimal changes to improve the response: ",
    "Sure! Here is the edited response:\n\n",
    "Sure, here's a minimally edited version:\n",
    "Certainly! ",
    "Sure!\n\n",
    "Of course. I'd be happy to help. Here is the revised response:\n\n",
    "**Revised response:**\n\n",
    "**Revised response:** ",
    "**Edited Response**\n\n",
    "## Edited response\n\n",
    "Edited response (minimal changes): ",
    "Response: ",
    "### Response:\n",
    "Assistant: ",
    "Here's the response with minimal changes:\n",
    "I've made minimal changes to the response:\n\n",
    "Below is the revised answer.\n\n",
    "The revised response is as follows:\n\n",
    "My edited version:\n",
    "Okay! Here’s my attempt:\n",
    "Here is the edited response\n\n",
    "This is my revised response:\n\n",
    "*Here is the response, improved with minimal changes:*\n\n",
    "<think>\nThe capital:\n\nit is Paris.\n</think>\n\nRevised response:\n",
]
NOTES = [
    "",
    "\n\nNote: I changed Lyon to Paris.",
    "\n\n(Note: I corrected the capital.)",
    '\n\nI changed "Lyon" to "Paris" because it is correct.',
    "\n\n**Changes made:**\n- Lyon -> Paris\n- nothing else",
    "\n\nChanges made:\n\n1. Lyon\n\n2. Paris",
    "\n\n---\n\nI only changed the city; the rest is unchanged.",
    "\nNote: I kept the rest of the response unchanged.",
    "\n\nExplanation: Paris is the capital.",
    "\n\nLet me know if you need more changes!",
    "\n\nI hope this helps!",
    "\n\nThe only change is that the city is now right.",
    "\n\nI made minimal changes to correct the fact.\n\nLet me know if this works.",
    "\n\nThis version corrects the capital.",
    "\n\n*I've corrected the capital city.*",
    "\n\nKey changes:\n* Paris",
]
AROUND = [
    ("", ""),
    ("```\n", "\n```"),
    ("```text\n", "\n```"),
    ('"', '"'),
    ("“", "”"),
    ("'", "'"),
    ("<response>\n", "\n</response>"),
    ("<edited_response>", "</edited_response>"),
]


@pytest.mark.parametrize("lead_in", LEAD_INS)
def test_what_stands_around_an_edit_comes_off(lead_in):
    for note, (start, end) in itertools.product(NOTES, AROUND):
        for text in (EDITED, ORIGINAL):
            reply = f"{lead_in}{start}{text}{end}{note}\n"
            assert unwrap(reply, ORIGINAL) == text, reply


@pytest.mark.parametrize(
    ("original", "reply", "edited"),
    [
        # the model repeats the original first
        (ORIGINAL, f"Original response: {ORIGINAL}\n\nRevised response: {EDITED}", EDITED),
        (ORIGINAL, f'Original:\n"{ORIGINAL}"\n\n**Edited:**\n"{EDITED}"', EDITED),
        (ORIGINAL, f"{ORIGINAL}\n\nHere is the edited response:\n\n{EDITED}", EDITED),
        # … or gives it back with what it did not do
        (ORIGINAL, f"{ORIGINAL}\n\nChanges made in the revised response:\n- none", ORIGINAL),
        # what the original has itself stays
        ("Sure! It is 4.", "Sure! It is 5.", "Sure! It is 5."),
        ("Sure! It is 4.", "Sure! Here is the edit: Sure! It is 5.", "Sure! It is 5."),
        ("Sure, it is 4.", "Sure! Sure, it is 5.", "Sure, it is 5."),
        ('"Go," he said, "go."', '"Go," he said, "run."', '"Go," he said, "run."'),
        ('"Go," he said, "go."', '""Go," he said, "run.""', '"Go," he said, "run."'),
        ("A or B", '"A" or "B"', '"A" or "B"'),
        ('"Yes"', '"No"', '"No"'),
        ('"Yes"', "No", "No"),
        ("He said no.", '"He said "no"."', 'He said "no".'),
        ("It's the dogs'", "'It's the dogs''", "It's the dogs'"),
        ("«Да»", "«Нет»", "«Нет»"),
        ("f(x)", "```py\ng(x)\n```", "g(x)"),
        ("```py\nf(x)\n```", "```py\ng(x)\n```", "```py\ng(x)\n```"),
        (
            "Use:\n```\nf\n```\nEnd.",
            "```\nUse:\n```\ng\n```\nEnd.\n```",
            "Use:\n```\ng\n```\nEnd.",
        ),
        ("a then b", "```\na\n```\nthen\n```\nb\n```", "```\na\n```\nthen\n```\nb\n```"),
        (
            "Here is the edited text:\nHo",
            "Here is the edited text:\nHi",
            "Here is the edited text:\nHi",
        ),
        (
            "Ho.\n\nNote: I changed it.",
            "Hi.\n\nNote: I changed it.",
            "Hi.\n\nNote: I changed it.",
        ),
        (
            "Ho.\n\nNote: I changed it.",
            "Hi.\n\nNote: I changed it.\n\nNote: I made one change.",
            "Hi.\n\nNote: I changed it.",
        ),
        # notes that are part of the answer
        (
            "Take two.",
            "Take two.\n\nNote: not for children.",
            "Take two.\n\nNote: not for children.",
        ),
        ("It rains.", "It rains.\n\nI made a cake then.", "It rains.\n\nI made a cake then."),
        ("It rains.", "Here is why: it rains.", "Here is why: it rains."),
        ("Two:", "Two:\n- the changes\n- the edits", "Two:\n- the changes\n- the edits"),
        ("1. a\n\n2. b", "1. a\n\n2. c", "1. a\n\n2. c"),
        # blanks at the ends are the original's
        ("\n Ho. \n", "Sure!\n\nHi.", "\n Hi. \n"),
        ("Ho.", "  Hi.\n\n", "Hi."),
        # nothing is left
        (ORIGINAL, "", ""),
        (ORIGINAL, "Here is the edited response:", ""),
        (ORIGINAL, "Sure! Here is the revised response:\n\n", ""),
    ],
)
def test_replies_by_hand(original, reply, edited):
    assert unwrap(reply, original) == edited


# Pieces of responses that look like what a model would say around one.
NASTY = [
    *(
        "Sure! ",
        "Certainly!\n\n",
        "Here is the revised letter:\n\n",
        "Response: ",
        "Answer: 4\n",
    ),
    *("The edited version is below:\n", '"', "“", "'", "```py\n", "```\n", "**Note:** "),
    *("\n\nNote: I changed the plan.", "\n\nI hope this helps!", "\n\n- one\n- two", "\n\n---"),
    *(
        "\n\nChanges made:\n- the roof",
        '"',
        "”",
        "'",
        "\n```",
        "\n\nThe main changes are these.",
    ),
    *("word ", "it's ", "wide. ", "red, ", "\n", "1. ", "* ", "I'm sorry, ", "plain ", "text "),
]


def nasty(rng: random.Random) -> str:
    pieces = [rng.choice(NASTY) for _ in range(rng.randrange(1, 7))]
    pieces.insert(
        rng.randrange(len(pieces) + 1), "The river runs slowly through the old town. "
    )
    return "".join(pieces)


@pytest.mark.parametrize("edit", [False, True])
def test_a_wrapped_response_comes_back_whatever_it_is(edit):
    """Lead-ins, notes and tags never take anything of the response with them."""
    rng = random.Random(0)
    for _ in range(3000):
        original = nasty(rng)
        said = original.replace("slowly", "fast") if edit else original
        start, end = rng.choice([("", ""), ("<response>\n", "\n</response>")])
        lead_in = rng.choice(LEAD_INS) if start else rng.choice(["", *LEAD_INS[1:]])
        reply = lead_in + start + said.strip() + end + (rng.choice(NOTES) if start else "")
        assert unwrap(reply, original) == said, (original, reply)


@pytest.mark.parametrize(
    "original", [ORIGINAL, 'Sure! Say "no".\n\nNote: I changed it.', "```\nx\n```"]
)
def test_layers_in_any_order_come_off(original):
    for lead_in, (start, end), note in itertools.product(LEAD_INS, AROUND[1:], NOTES):
        reply = f"{lead_in}{start}{original}{end}{note}"
        assert unwrap(reply, original) == original, reply


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
    ],
)
def test_outcomes(said, reason):
    found = editor.outcome(said, ORIGINAL, 0.5)
    assert found == editor.Outcome("" if reason else EDITED, reason)


def test_a_reply_that_repeats_what_was_asked_is_none():
    bare = editor.prompt(editor.template(), editor.Task("", "", "", ""))
    repeated = (
        f"{EDITED}\n\nNo introduction, no quotation marks, no remarks about what you did."
    )
    assert editor.outcome(reply(repeated), ORIGINAL, 0.9, bare).reason == "unparsable"
    assert editor.outcome(reply(repeated), ORIGINAL, 0.9).reason == ""
    original = f"Tell it: {bare}"
    edited = original.replace("Tell it", "Tell it so")
    assert editor.outcome(reply(edited), original, 0.9, bare) == (edited, "")


def test_a_refusal_may_be_edited():
    original = "I'm sorry, but I can't help with that."
    found = editor.outcome(reply("I'm sorry, but I can't help you with that."), original, 0.5)
    assert found == ("I'm sorry, but I can't help you with that.", "")


def test_tasks_of_every_kind_of_row(tmp_path):
    rows = [
        {"instruction": "q1", "output": "a"},
        {"instruction": "q2", "input": "i", "original": "o", "edited": "e", "id": "x/2"},
        {"instruction": "q3", "output_1": "b", "output_2": "w", "preference": 1},
        {"instruction": "q4", "output_1": "w", "output_2": "b", "preference": 2},
        {"instruction": "q5", "output": "", "id": 7},
    ]
    records.write_jsonl(tmp_path / "rows.jsonl", rows)
    read = records.read_with_rows(str(tmp_path / "rows.jsonl"))
    assert [tuple(task) for task in editor.tasks(read)] == [
        ("1", "q1", "", "a"),
        ("x/2", "q2", "i", "o"),
        ("3", "q3", "", "w"),
        ("4", "q4", "", "w"),
        ("7", "q5", "", ""),
    ]
    assert [task.response for task in editor.tasks(read, "better")] == ["a", "o", "b", "b", ""]


def test_the_default_template_shows_the_fields_as_they_are():
    task = editor.Task("1", "What is {{ 1 }} < 2?", "", "  A & B\n\nC {% x %}")
    text = editor.prompt(editor.template(), task)
    assert text.startswith(
        "Question: What is {{ 1 }} < 2?\n\nResponse:   A & B\n\nC {% x %}\n\n"
    )
    assert "Input" not in text
    with_input = editor.prompt(editor.template(), task._replace(input="the input"))
    assert "2?\n\nInput: the input\n\nResponse: " in with_input


def write(path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_template_of_ones_own(tmp_path):
    path = write(tmp_path / "t.txt", "{% for n in range(2) %}{{ response|upper }}{% endfor %}!")
    filled = editor.prompt(editor.template(path), editor.Task("1", "q", "", "abc"), path)
    assert filled == "ABCABC!"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{{ instruction }}", "t.txt: has no {{ response }}, the text that is to be edited"),
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
        editor.template(str(path))
    assert says in str(error.value)


def test_what_was_set_aside_is_counted(tmp_path):
    output = tmp_path / "e.jsonl"
    assert editor.set_aside([output]) == {}
    reasons = ["cut", "rejected: 400: too long", "cut", "rejected: 413: too\u2028long"]
    rows = [json.dumps({"reason": reason}, ensure_ascii=False) for reason in reasons]
    durable.aside(output).write_text("\n".join(rows) + "\n")
    assert editor.set_aside([output, tmp_path / "other.jsonl"]) == {"cut": 2, "rejected": 2}
    durable.aside(output).write_text('{"reason": "cut"}\n[]\n')
    with pytest.raises(InputError, match=r"e\.rejected\.jsonl:2: is no row that was set aside"):
        editor.set_aside([output])
