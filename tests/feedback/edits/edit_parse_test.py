"""The edit in a reply: read from tags or JSON, or found by comparison with the original."""

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
        *((SINGLE, EDITED), ("<edit>A <b>b</b>.</edit>", "A <b>b</b>."), ("<edit></edit>", "")),
        (f"Sure!\n{SINGLE}\n\nI changed the city.<|eot_id|>", EDITED),
        (f"<think>Between <edit> and </edit>: {TWICE}.</think>\n{SINGLE}", EDITED),
        (f"I write <edit>.</think>\n{SINGLE}", EDITED),
        (f"[THINK]{SINGLE} or so[/THINK]{SINGLE}", EDITED),
        (f"<|im_start|>assistant\n{SINGLE}<|im_end|>", EDITED),
        *((reply, None) for reply in (EDITED, TWICE, json.dumps({"edit": EDITED}))),
        *((form.format(EDITED), None) for form in ("<edit>{}", "{}</edit>", "</edit>{}<edit>")),
        *((f"{start} {SINGLE}", None) for start in ("<edit><b>A</b></edit>, or", "<think>Maybe")),
        (f"<EDIT>{EDITED}</EDIT>", None),
    ],
)
def test_only_one_pair_of_tags_is_read(reply, text):
    assert read_tags(reply, "edit") == text


AROUND = [
    *("{}<|eot_id|>", "{}</s>", "<s> {}", "{}<｜end▁of▁sentence｜>", "{}[/INST]"),
    "<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>",
    "<|channel|>analysis<|message|>Lyon?<|end|><|channel|>final<|message|>{}<|return|>",
    *("◁think▷It names Lyon.◁/think▷{}", "It names Lyon.\n</think>\n\n{}"),
    *("[THINK]It names Lyon.[/THINK]{}", "<reasoning>It names Lyon.</reasoning>{}"),
    "<think>\nIt says 'The capital of France is Lyon. It has many parks.' I go on.\n</think>\n\n{}",
    *("<![CDATA[{}]]>", "<output>{}</output>", "<antwort>\n{}\n</antwort>\n\nLyon ist falsch."),
    *("```\n{}\n```", "Voilà :\n~~~text\n{}\n~~~\nC'est tout."),
    *('"{}"', '"""{}"""', "„{}“", "「{}」", "**{}**"),
    *('Hier:\n\n"{}"\n\nIch habe ein Wort geändert.', "{}\n\nWould you like any other changes?"),
    *("Hier ist die überarbeitete Antwort:\n\n{}", "以下是修改后的回答：\n\n{}"),
    *("Sure! **Here is what I made of it:**\n{}", "{}\n\nهل تريد تغييرات أخرى؟"),
    "Voici la réponse révisée :\n\n{}\n\nVoulez-vous autre chose ?",
]


@pytest.mark.parametrize("around", AROUND)
def test_text_around_an_edit_is_removed(around):
    assert unwrap(around.replace("{}", EDITED), ORIGINAL) == EDITED
    quoted = f'He said "no".\n\n{ORIGINAL}\n\n- one\n- two'
    edited = quoted.replace("Lyon", "Paris")
    assert unwrap(around.replace("{}", edited), quoted) == edited
    lines = edited.replace("\n", "\n> ")
    assert unwrap(f"Voici :\n\n> {lines}\n\nC'est tout.", quoted) == edited


@pytest.mark.parametrize(
    "value",
    [
        *({"response": EDITED}, {"data": [{"text": EDITED}], "n": 1}, [EDITED], EDITED),
        {"answer": EDITED, "changes": "Lyon is not the capital."},
    ],
)
@pytest.mark.parametrize("form", ["{}", "```json\n{}\n```", "Voici :\n```json\n{}\n```"])
def test_json_around_an_edit_is_removed(value, form):
    assert unwrap(form.format(json.dumps(value)), ORIGINAL) == EDITED


DOUBTFUL = [
    *(f"{head} {EDITED}" for head in ("Sure!", "OK,", "A)", "Antwort:", "Edited -", "-")),
    *(f"**Edited response:** {EDITED}", f"Question: What is it?\n\nResponse: {EDITED}"),
    *(f"{EDITED}{end}" for end in ("END", "…END", "Hope it helps!", "希望对你有帮助！", "¹", " $")),
    *(f"{EDITED}{end}" for end in (r"\n", "###", "<|eot", "It has parks!", "\n\nNote: I do.")),
    *(f"{EDITED} {end}" for end in ("Viel Erfolg!", "I hope so, too.", "✅", "# edited", "FIN")),
    *(f"{EDITED} {end}" for end in ("(I changed Lyon to Paris.)", "Note: I changed it.")),
    *(f"{EDITED} Remarque : j'ai tout changé.", f"{EDITED}\n注：我改了城市。"),
    *(f"{EDITED} {EDITED}", f"{ORIGINAL}\n\n{EDITED}", f"{EDITED} Möchten Sie mehr?"),
    *(f"Hier:\n\n{ORIGINAL}", f"{ORIGINAL}\n\nMöchten Sie mehr?"),
    *(f"### Edited response\n\n{EDITED}", f'The text is "{EDITED}".'),
    *(f"Hier:\n\n{EDITED}\n\nIch habe es getan.", f"Option 1: {EDITED}\nOption 2: It is Paris."),
    *(f"\\boxed{{{EDITED}}}", f'edited_response="{EDITED}"', f"[THINK]Lyon? {EDITED}<|eot_id|>"),
    "<think>The capital of France is Paris, not Lyon. It has many parks.</s>",
    *(f"<think>hmm {EDITED}", EDITED.replace("Paris", "<del>Lyon</del><ins>Paris</ins>")),
    *(EDITED.replace("Paris", to) for to in ("~~Lyon~~ **Paris**", "[-Lyon-] {+Paris+}")),
    *(EDITED.replace("Paris", to) for to in ("Lyon → Paris", "<b>Paris</b>")),
    json.dumps({"original": ORIGINAL, "edited": EDITED}),
    f"<original>{ORIGINAL}</original> <edited>{EDITED}</edited>",
    f"```\n{ORIGINAL}\n```\nbecomes\n```\n{EDITED}\n```",
]


@pytest.mark.parametrize("reply", DOUBTFUL)
def test_text_that_may_belong_to_the_edit_is_doubtful(reply):
    with pytest.raises(Doubtful):
        unwrap(reply, ORIGINAL)


FRAMES = [*AROUND, "Antwort: {}", "Sure! {}", "Sure, here it is: {}", "{}\n\n### End"]
FRAMES += ["“{} (edited)", "(Edited) {}*", "{} (minimal edits made)", "Q: Who?\n\nResponse: {}"]


@pytest.mark.parametrize("around", FRAMES)
def test_text_around_an_edit_is_found_if_its_first_and_last_words_changed(around):
    original = "The leader of the party has said that the size of the vote took her by surprise."
    edited = "Ms Wood said that the size of the vote took her."
    with contextlib.suppress(Doubtful):
        assert unwrap(around.replace("{}", edited), original) == edited


@pytest.mark.parametrize(
    ("original", "edited"),
    [
        *((it, it.replace("4", "5")) for it in ("Sure! It is 4.", "<p>4.</p>", '{"a": "It is 4"}')),
        ('"Go," he said, "go."', '"Go," he said, "run."'),
        *(('"Yes"', '"No"'), ('"Yes"', "No"), ("«Да»", "«Нет»"), ("- a b", "- a c\n- d")),
        ('"Emma" is by Austen.', '"Emma" is hers, as is "Lady."'),
        *(("It's the dogs'", "It's the cats'"), ("```py\nf(x)\n```", "```py\ng(x)\n```")),
        ("Use a loop. It ends.", "Use a loop:\n```py\nfor x in y: ...\n```\nIt ends."),
        *((ho, ho.replace("Ho", "Hi")) for ho in ("Here is it:\nHo", "Ho.\n\nNote: so.")),
        *(("1. a\n\n2. b", "1. a\n\n2. c\n\n3. d"), ("Ho. Note: so.", "Hi. Note: so.")),
        (ORIGINAL, "Lyon is big, and Paris is the capital of France. It has many parks."),
        *((ORIGINAL, f"{EDITED} {more}") for more in ("It is big.", "Paris is big.")),
        *((ORIGINAL, EDITED.replace("France", to)) for to in ("<b>France</b>", "France [1]")),
        ("He is ~~old~~ new ✅", "He is ~~young~~ new ✅"),
        *((ORIGINAL, "Paris is it, and it has parks."), (ORIGINAL, "")),
        *(("It is 20 degrees.", "It is 20°."), ("At noon I ate it.", "At 10:30 I ate it.")),
        ("Tony Blair has no such pitch.", "Mr. Blair has no such pitch."),
        ("See the page for more.", "See https://a.org/?b=1&copy=2 for more."),
    ],
)
def test_nothing_of_an_edit_is_removed(original, edited):
    assert unwrap(f"\n{edited} ", original) == edited


def test_characters_that_only_the_reply_escapes_are_doubtful():
    for sign, escaped in (("&", "&amp;"), ("$5_000", r"\$5\_000")):
        with pytest.raises(Doubtful):
            unwrap(f"Paris {escaped} Lyon are big.", f"Nice {sign} Lyon are big.")
        assert unwrap(f"Paris {escaped} Lyon.", f"Nice {escaped} Lyon.") == f"Paris {escaped} Lyon."


# Pieces of responses that look like a model's words around a response.
NASTY = ["Sure! ", "Here is the letter:\n\n", "Answer: 4\n", '"', "'", "```py\n", "```\n", "\n"]
NASTY += ["\n\nNote: the plan is new.", "\n\n- one\n- two", "\n\n---", "word ", "it's ", "(so) "]
NASTY += ["1. ", "<b>", "</b>", "[/x]", "> ", "Why? ", "{", "}"]


def test_a_random_response_is_returned_exactly_or_doubtful():
    rng, doubtful = random.Random(0), 0
    for _ in range(600):
        pieces = [rng.choice(NASTY) for _ in range(rng.randrange(1, 7))]
        place = rng.randrange(len(pieces) + 1)
        pieces.insert(place, "The river runs slowly through the old town. ")
        original = "".join(pieces).strip()
        text = original.replace("slowly", "fast")
        around = rng.choice(["{}", *AROUND])
        try:
            assert unwrap(around.replace("{}", text), original) == text, (original, around)
        except Doubtful:
            doubtful += 1
    assert doubtful < 120


@pytest.mark.parametrize(
    "reply",
    [
        *(part * 3000 + ORIGINAL for part in (". ", '"\n', "The answer is:\n\n")),
        *(f"{EDITED}{part * 20_000}\n{EDITED}" for part in (" ", "()")),
    ],
)
def test_a_long_reply_takes_seconds_and_is_doubtful(reply):
    start = time.perf_counter()
    with pytest.raises(Doubtful):
        unwrap(reply, ORIGINAL)
    assert time.perf_counter() - start < 5
