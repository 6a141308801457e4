"""The edit in a reply, whatever a model says around it."""

import itertools
import random
import re

import pytest

from fgrlhf_jax.feedback.edits.parse import parse_edit

ORIGINAL = "The capital of France is Lyon. It has many parks."
EDITED = "The capital of France is Paris. It has many parks."
NOTE = "\n\nNote: I changed it."

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
    "Here is what I think: it is Paris.\n\n<response>?</response>\n</think>\n\n",
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
            assert parse_edit(reply, ORIGINAL) == text, reply


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
        # … as do two quoted phrases, which are no quotation of the whole
        (
            '"Emma" is by Austen.',
            '"Emma" is hers, as is "Lady."',
            '"Emma" is hers, as is "Lady."',
        ),
        (
            "`Emma` is by Austen.",
            "`Emma` is hers, as is `Lady.`",
            "`Emma` is hers, as is `Lady.`",
        ),
        ("f(x)", "```py\ng(x)\n```", "g(x)"),
        ("```py\nf(x)\n```", "```py\ng(x)\n```", "```py\ng(x)\n```"),
        (
            "Use:\n```\nf\n```\nEnd.",
            "```\nUse:\n```\ng\n```\nEnd.\n```",
            "Use:\n```\ng\n```\nEnd.",
        ),
        ("a then b", "```\na\n```\nthen\n```\nb\n```", "```\na\n```\nthen\n```\nb\n```"),
        ("Here is the edit:\nHo", "Here is the edit:\nHi", "Here is the edit:\nHi"),
        (f"Ho.{NOTE}", f"Hi.{NOTE}", f"Hi.{NOTE}"),
        (f"Ho.{NOTE}", f"Hi.{NOTE}\n\nNote: I made one change.", f"Hi.{NOTE}"),
        # notes that are part of the answer
        ("Two.", "Two.\n\nNote: not for children.", "Two.\n\nNote: not for children."),
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
    assert parse_edit(reply, original) == edited


PROMPTS = ("What is its capital?", "France,\nin  Europe")


@pytest.mark.parametrize(
    ("reply", "edited"),
    [
        (f"Question: {PROMPTS[0]}\n\nInput: {PROMPTS[1]}\n\nResponse: {EDITED}", EDITED),
        (f"Sure! Here it is:\n\n**Question:** {PROMPTS[0]}\n\n**Response:** {EDITED}", EDITED),
        (f"{PROMPTS[0]}\nRevised response:\n\n{EDITED}\n\nNote: I changed Lyon.", EDITED),
        (f'### Input:\n{PROMPTS[1]}\n\n### Response:\n"{EDITED}"', EDITED),
        (
            f"Question: {PROMPTS[0]}\n\nResponse: {ORIGINAL}\n\nImproved response: {EDITED}",
            EDITED,
        ),
        (f"{PROMPTS[0]} {EDITED}", f"{PROMPTS[0]} {EDITED}"),
        (f"{PROMPTS[0]}\n\nAnswer: no", f"{PROMPTS[0]}\n\nAnswer: no"),  # no version of it
    ],
)
def test_a_repeated_prompt_comes_off_before_a_lead_in(reply, edited):
    assert parse_edit(reply, ORIGINAL, *PROMPTS) == edited
    framed = f"Question: {PROMPTS[0]}\n\nAnswer: {ORIGINAL}"
    for text in (framed, framed.replace("Lyon", "Paris")):
        assert parse_edit(text, framed, *PROMPTS) == text


# Pieces of responses that look like what a model would say around one.
NASTY = r"""Sure! |Certainly!\n\n|Here is the revised letter:\n\n|Response: |Answer: 4\n
The edited version is below:\n|"|“|'|```py\n|```\n|**Note:** |\n\nNote: I changed the plan.
\n\nI hope this helps!|\n\n- one\n- two|\n\n---|\n\nChanges made:\n- the roof|"|”|'|\n```
\n\nThe main changes are these.|word |it's |wide. |red, |\n|1. |* |I'm sorry, |plain |text """
NASTY = [text.replace(r"\n", "\n") for text in re.split(r"[|\n]", NASTY)]


def nasty(rng: random.Random) -> str:
    pieces = [rng.choice(NASTY) for _ in range(rng.randrange(1, 7))]
    pieces.insert(rng.randrange(len(pieces) + 1), "The river runs slowly through the old town. ")
    return "".join(pieces)


@pytest.mark.parametrize("edit", [False, True])
def test_a_wrapped_response_comes_back_whatever_it_is(edit):
    """Lead-ins, notes and tags never take anything of the response with them."""
    rng = random.Random(0)
    for _ in range(1500):
        original = nasty(rng)
        text = original.replace("slowly", "fast") if edit else original
        start, end = rng.choice([("", ""), ("<response>\n", "\n</response>")])
        lead_in = rng.choice(LEAD_INS) if start else rng.choice(["", *LEAD_INS[1:]])
        reply = lead_in + start + text.strip() + end + (rng.choice(NOTES) if start else "")
        assert parse_edit(reply, original) == text, (original, reply)


@pytest.mark.parametrize("original", ['Sure! Say "no".\n\nNote: I changed it.', "```\nx\n```"])
def test_layers_in_any_order_come_off(original):
    for lead_in, (start, end), note in itertools.product(LEAD_INS, AROUND[1:], NOTES):
        reply = f"{lead_in}{start}{original}{end}{note}"
        assert parse_edit(reply, original) == original, reply
