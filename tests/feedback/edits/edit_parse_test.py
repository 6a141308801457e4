"""The edit in a reply: read in its form, or by comparison with the original, in any language."""

import contextlib
import json
import random
import time

import pytest

from fgrlhf_jax.feedback.edits.parse import Doubtful, read_tags, unwrap

ORIGINAL = "The capital of France is Lyon. It has many parks."
EDITED = "The capital of France is Paris. It has many parks."
SINGLE, TWICE = f"<edit>{EDITED}</edit>", f"<edit>{ORIGINAL}</edit> <edit>{EDITED}</edit>"


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (SINGLE, EDITED),
        (f"Sure!\n{SINGLE}\n\nI changed the city.<|eot_id|>", EDITED),
        (f"<think>Between <edit> and </edit>: {TWICE}.</think>\n{SINGLE}", EDITED),
        (f"I write <edit>.</think>\n{SINGLE}", EDITED),
        (f"[THINK]{SINGLE} or so[/THINK]{SINGLE}", EDITED),
        (f"<|im_start|>assistant\n{SINGLE}<|im_end|>", EDITED),
        ("<edit>A <b>b</b>.</edit>", "A <b>b</b>."),
        ("<edit></edit>", ""),
        (EDITED, None),
        (f"<edit>{EDITED}", None),
        (f"{EDITED}</edit>", None),
        (f"</edit>{EDITED}<edit>", None),
        (TWICE, None),
        (f"<edit><b>A</b></edit>, or {SINGLE}", None),
        (f"<think>I could write {SINGLE}", None),
        (f"<EDIT>{EDITED}</EDIT>", None),
        (json.dumps({"edit": EDITED}), None),
    ],
)
def test_only_one_pair_of_tags_is_read(reply, text):
    assert read_tags(reply, "edit") == text


AROUND = [
    "{}<|eot_id|>",
    "{}</s>",
    "<s> {}",
    "{}<｜end▁of▁sentence｜>",
    "{}[/INST]",
    "<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>",
    "<|channel|>analysis<|message|>Lyon?<|end|><|channel|>final<|message|>{}<|return|>",
    "◁think▷It names Lyon.◁/think▷{}",
    "<![CDATA[{}]]>",
    "[THINK]It names Lyon, which is wrong.[/THINK]{}",
    "<reasoning>It names Lyon, which is wrong.</reasoning>{}",
    "<think>\nIt says 'The capital of France is Lyon. It has many parks.' I go on.\n</think>\n\n{}",
    "It names Lyon.\n</think>\n\n{}",
    "<output>{}</output>",
    "<antwort>\n{}\n</antwort>\n\nLyon ist falsch.",
    "```\n{}\n```",
    "Voilà :\n~~~text\n{}\n~~~\nC'est tout.",
    '"{}"',
    '"""{}"""',
    "„{}“",
    "「{}」",
    "**{}**",
    'Hier:\n\n"{}"\n\nIch habe ein Wort geändert.',
    "Hier ist die überarbeitete Antwort:\n\n{}",
    "以下是修改后的回答：\n\n{}",
    "Sure! **Here is what I made of it:**\n{}",
    "{}\n\nWould you like me to make any other changes?",
    "{}\n\nهل تريد تغييرات أخرى؟",
    "Voici la réponse révisée :\n\n{}\n\nVoulez-vous autre chose ?",
]


@pytest.mark.parametrize("around", AROUND)
def test_what_stands_around_an_edit_comes_off(around):
    assert unwrap(around.replace("{}", EDITED), ORIGINAL) == EDITED
    quoted = f'He said "no".\n\n{ORIGINAL}\n\n- one\n- two'
    edited = quoted.replace("Lyon", "Paris")
    assert unwrap(around.replace("{}", edited), quoted) == edited
    lines = edited.replace("\n", "\n> ")
    assert unwrap(f"Voici :\n\n> {lines}\n\nC'est tout.", quoted) == edited


@pytest.mark.parametrize(
    "value",
    [
        {"response": EDITED},
        {"answer": EDITED, "changes": "Lyon is not the capital."},
        {"data": [{"text": EDITED}], "n": 1},
        [EDITED],
        EDITED,
    ],
)
@pytest.mark.parametrize("form", ["{}", "```json\n{}\n```", "Voici :\n```json\n{}\n```"])
def test_json_comes_off(value, form):
    assert unwrap(form.format(json.dumps(value)), ORIGINAL) == EDITED


DOUBTFUL = [
    *(f"{head} {EDITED}" for head in ("Sure!", "OK,", "A)", "Antwort:", "Edited -", "-")),
    *(
        f"{EDITED}{x}"
        for x in ("END", "…END", "Hope it helps!", "希望对你有帮助！", "¹", r"\n", " $")
    ),
    *(f"{EDITED} {x}" for x in ("Viel Erfolg!", "I hope so, too.", "✅", "# edited", "FIN")),
    f'The text is "{EDITED}".',
    f"### Edited response\n\n{EDITED}",
    f"{EDITED}\n\nNote: I changed it.",
    f"{EDITED}\n注：我改了城市。",
    f"{EDITED} (I changed Lyon to Paris.)",
    f"{EDITED} Note: I changed it.",
    f"{EDITED} Remarque : j'ai tout changé.",
    f"Hier:\n\n{EDITED}\n\nIch habe die Stadt geändert.",
    f"Hier:\n\n{ORIGINAL}",
    f"{ORIGINAL}\n\nMöchten Sie mehr?",
    f"{ORIGINAL}\n\n{EDITED}",
    f"{EDITED} {EDITED}",
    f"Option 1: {EDITED}\nOption 2: It is Paris.",
    f"Question: What is it?\n\nResponse: {EDITED}",
    f"**Edited response:** {EDITED}",
    f"\\boxed{{{EDITED}}}",
    f"{EDITED}###",
    f"<think>hmm {EDITED}",
    f"[THINK]Lyon? {EDITED}<|eot_id|>",
    "<think>The capital of France is Paris, not Lyon. It has many parks.</s>",
    f'edited_response="{EDITED}"',
    f"{EDITED}<|eot",
    f"{EDITED} Möchten Sie mehr?",
    EDITED.replace("Paris", "~~Lyon~~ **Paris**"),
    EDITED.replace("Paris", "[-Lyon-] {+Paris+}"),
    EDITED.replace("Paris", "Lyon → Paris"),
    EDITED.replace("Paris", "<b>Paris</b>"),
    EDITED.replace("Paris", "<del>Lyon</del><ins>Paris</ins>"),
    json.dumps({"original": ORIGINAL, "edited": EDITED}),
    f"<original>{ORIGINAL}</original> <edited>{EDITED}</edited>",
    f"```\n{ORIGINAL}\n```\nbecomes\n```\n{EDITED}\n```",
]


@pytest.mark.parametrize("reply", DOUBTFUL)
def test_what_may_be_a_part_of_the_edit_is_doubtful(reply):
    with pytest.raises(Doubtful):
        unwrap(reply, ORIGINAL)


FRAMES = [*AROUND, "Antwort: {}", "Sure! {}", "Sure, here it is: {}", "{}\n\n### End"]
FRAMES += ["“{} (edited)", "(Edited) {}*", "{} (minimal edits made)"]
FRAMES += ["Question: What is it?\n\nResponse: {}"]


@pytest.mark.parametrize("around", FRAMES)
def test_other_words_at_the_ends_hide_no_frame(around):
    original = "The leader of the party has said that the size of the vote took her by surprise."
    edited = "Ms Wood said that the size of the vote took her."
    with contextlib.suppress(Doubtful):
        assert unwrap(around.replace("{}", edited), original) == edited


@pytest.mark.parametrize(
    ("original", "edited"),
    [
        ("Sure! It is 4.", "Sure! It is 5."),
        ('"Go," he said, "go."', '"Go," he said, "run."'),
        ('"Yes"', '"No"'),
        ('"Yes"', "No"),
        ("«Да»", "«Нет»"),
        ('"Emma" is by Austen.', '"Emma" is hers, as is "Lady."'),
        ("It's the dogs'", "It's the cats'"),
        ("```py\nf(x)\n```", "```py\ng(x)\n```"),
        ("Use a loop. It ends.", "Use a loop:\n```py\nfor x in y: ...\n```\nIt ends."),
        ("Here is it:\nHo", "Here is it:\nHi"),
        ("Ho.\n\nNote: so.", "Hi.\n\nNote: so."),
        ("1. a\n\n2. b", "1. a\n\n2. c\n\n3. d"),
        ("- a b", "- a c\n- d"),
        ("<p>It is 4.</p>", "<p>It is 5.</p>"),
        ('{"a": "It is 4."}', '{"a": "It is 5."}'),
        (ORIGINAL, EDITED.replace("France", "<b>France</b>")),
        (ORIGINAL, f"{EDITED} It is big."),
        (ORIGINAL, f"{EDITED} Paris is big."),
        (ORIGINAL, "Lyon is big, and Paris is the capital of France. It has many parks."),
        ("Ho. Note: so.", "Hi. Note: so."),
        ("It is 20 degrees.", "It is 20°."),
        ("He is ~~old~~ new ✅", "He is ~~young~~ new ✅"),
        (ORIGINAL, EDITED.replace("has", "has [1]")),
        (ORIGINAL, "Paris is it, and it has parks."),
        ("At noon I ate it.", "At 10:30 I ate it."),
        ("Tony Blair has no such pitch.", "Mr. Blair has no such pitch."),
        ("See the page for more.", "See https://a.org/?b=1&copy=2 for more."),
        (ORIGINAL, ""),
    ],
)
def test_what_is_of_the_edit_stays(original, edited):
    assert unwrap(f"\n{edited} ", original) == edited


def test_signs_that_were_escaped_for_the_form_are_doubtful():
    for sign, escaped in (("&", "&amp;"), ("$5_000", r"\$5\_000")):
        with pytest.raises(Doubtful):
            unwrap(f"Paris {escaped} Lyon are big.", f"Nice {sign} Lyon are big.")
        assert unwrap(f"Paris {escaped} Lyon.", f"Nice {escaped} Lyon.") == f"Paris {escaped} Lyon."


# Pieces of responses that look like what a model would say around one.
NASTY = ["Sure! ", "Here is the letter:\n\n", "Answer: 4\n", '"', "'", "```py\n", "```\n", "\n"]
NASTY += ["\n\nNote: the plan is new.", "\n\n- one\n- two", "\n\n---", "word ", "it's ", "(so) "]
NASTY += ["1. ", "<b>", "</b>", "[/x]", "> ", "Why? ", "{", "}"]


def test_a_wrapped_response_comes_back_whatever_it_is():
    """Or is doubtful; nothing of it is taken off with what stands around it."""
    rng, outcomes = random.Random(0), {True: 0, False: 0}
    for _ in range(600):
        pieces = [rng.choice(NASTY) for _ in range(rng.randrange(1, 7))]
        place = rng.randrange(len(pieces) + 1)
        pieces.insert(place, "The river runs slowly through the old town. ")
        original = "".join(pieces).strip()
        text = original.replace("slowly", "fast")
        around = rng.choice(["{}", *AROUND])
        try:
            unwrapped = unwrap(around.replace("{}", text), original)
        except Doubtful:
            outcomes[False] += 1
            continue
        outcomes[True] += 1
        assert unwrapped == text, (original, around)
    assert outcomes[True] > 4 * outcomes[False]


@pytest.mark.parametrize("loop", [". ", '"\n', "The answer is:\n\n"])
def test_a_reply_that_repeats_itself_is_read_in_seconds(loop):
    with pytest.raises(Doubtful):
        unwrap(loop * 3000 + ORIGINAL, ORIGINAL)


@pytest.mark.parametrize("part", [" ", "()"])
def test_the_time_for_a_long_reply(part):
    start = time.perf_counter()
    with contextlib.suppress(Doubtful):
        unwrap(f"{EDITED}{part * 20_000}\n{EDITED}", ORIGINAL)
    assert time.perf_counter() - start < 5
