"""Judges: what is asked and in which order, and what follows from the replies."""

import re
import sys

import pytest

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.judges import alpaca_eval, judge
from fgrlhf_jax.feedback.judges.alpaca_eval import Comparison, Verdict
from fgrlhf_jax.feedback.llm.client import Reply
from fgrlhf_jax.feedback.llm.requests import Rejected

PLAIN = judge.template()
OPTIONS = {"seed": 0, "both_orders": False, "max_tokens": 9}


def pair(number: int, **fields) -> Comparison:
    texts = {"output_1": f"reference {number}", "output_2": f"model {number}", "input": ""}
    return Comparison(f"do {number}", **(texts | fields))


def swapped(one: Comparison) -> Comparison:
    """The reference and the model in each other's place."""
    return Comparison(one.instruction, one.input, one.output_2, one.output_1)


def said(text: str, stop: str = "end") -> Reply:
    return Reply(text, stop, 1, 1)


MANY = [pair(number) for number in range(400)]


def test_a_prompt_holds_all_of_a_row():
    one = Comparison("Name a {{ colour }} & more.", "of the sky <b>", "Blue.\n\nIs it?", "Grey")
    (asked,) = judge.questions([one], PLAIN, **OPTIONS)
    first, second = (one.output_1, one.output_2)[:: 1 if asked.shown_first == 1 else -1]
    prompt = asked.request.prompt
    places = [prompt.index(text) for text in (one.instruction, one.input, first, second)]
    assert places == sorted(places)
    assert (asked.request.max_tokens, asked.request.temperature) == (9, 0)


def test_without_an_input_nothing_is_said_of_one():
    (asked,) = judge.questions([pair(0)], PLAIN, **OPTIONS)
    assert "input" not in asked.request.prompt


def test_nobody_is_asked_about_identical_responses():
    rows = [pair(0), pair(1, output_1="same", output_2="same"), pair(2)]
    asked = judge.questions(rows, PLAIN, **OPTIONS)
    assert [question.number for question in asked] == [0, 2]
    found = judge.by_model(rows, asked, [said("A"), said("B")], "me")
    assert found[1].preference == 1.5
    assert found[1].verdicts == ()


def test_the_order_is_a_fair_coin_that_falls_the_same_way_again():
    asked = judge.questions(MANY, PLAIN, **OPTIONS)
    first = sum(question.shown_first == 1 for question in asked)
    assert 160 < first < 240
    assert judge.questions(MANY, PLAIN, **OPTIONS) == asked
    # A row's order does not depend on the other rows, but on the seed.
    assert [q.request for q in judge.questions(MANY[7:9], PLAIN, **OPTIONS)] == [
        question.request for question in asked[7:9]
    ]
    other = judge.questions(MANY, PLAIN, **OPTIONS | {"seed": 1})
    same = sum(a.shown_first == b.shown_first for a, b in zip(asked, other, strict=True))
    assert 160 < same < 240


@pytest.mark.parametrize("both", [False, True])
def test_swapped_sides_ask_the_same_and_get_the_opposite(both):
    options = OPTIONS | {"both_orders": both}
    there = judge.questions(MANY, PLAIN, **options)
    back = judge.questions([swapped(one) for one in MANY], PLAIN, **options)
    assert [q.request for q in there] == [q.request for q in back]
    assert all(a.shown_first == 3 - b.shown_first for a, b in zip(there, back, strict=True))
    replies = [said("AB T"[number % 4]) for number in range(len(there))]
    replies = [said("tie") if reply.text == "T" else reply for reply in replies]
    ours = judge.by_model(MANY, there, replies, "me")
    theirs = judge.by_model([swapped(one) for one in MANY], back, replies, "me")
    for one, two in zip(ours, theirs, strict=True):
        assert (one.preference is None) == (two.preference is None)
        assert one.preference is None or one.preference + two.preference == 3


def test_a_judge_who_always_says_the_first_is_told_by_its_bias_and_wins_half():
    asked = judge.questions(MANY, PLAIN, **OPTIONS)
    found = alpaca_eval.summary(judge.by_model(MANY, asked, [said("A")] * len(asked), "me"))
    assert found["first_shown"] == 100
    assert 40 < found["win_rate"] < 60
    both = judge.questions(MANY, PLAIN, **OPTIONS | {"both_orders": True})
    found = alpaca_eval.summary(judge.by_model(MANY, both, [said("A")] * len(both), "me"))
    assert (found["draws"], found["win_rate"], found["first_shown"]) == (400, 50, 100)
    assert found["verdicts"] == 800


def test_both_orders_are_asked_of_each_pair():
    asked = judge.questions(MANY[:3], PLAIN, **OPTIONS | {"both_orders": True})
    assert [question.number for question in asked] == [0, 0, 1, 1, 2, 2]
    for one, two in zip(asked[::2], asked[1::2], strict=True):
        assert {one.shown_first, two.shown_first} == {1, 2}
        assert one.request != two.request


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ([(1, "first")], 1),
        ([(1, "second")], 2),
        ([(2, "first")], 2),
        ([(2, "second")], 1),
        ([(1, "tie")], 1.5),
        ([(1, None)], None),
        ([(1, "first"), (2, "second")], 1),
        ([(1, "second"), (2, "first")], 2),
        # Disagreement is a draw, a verdict against a tie too.
        ([(1, "first"), (2, "first")], 1.5),
        ([(1, "second"), (2, "second")], 1.5),
        ([(1, "tie"), (2, "first")], 1.5),
        ([(1, "tie"), (2, "tie")], 1.5),
        ([(1, "first"), (2, None)], None),
        ([], 1.5),
    ],
)
def test_verdicts_to_preferences(given, want):
    assert judge.preference([Verdict(*verdict, "") for verdict in given]) == want


def test_what_is_no_verdict_says_why():
    rows = MANY[:5]
    asked = judge.questions(rows, PLAIN, **OPTIONS)
    replies = [
        said("Both   have\nmerits. " + "x" * 200),
        Rejected("400: too long"),
        said("No.", "refusal"),
        said("A", "length"),
        said("A. B is longer, but", "length"),
    ]
    found = judge.by_model(rows, asked, iter(replies), "openai/m")
    assert [one.preference is None for one in found] == [True, True, True, False, True]
    assert found[0].reason.startswith("no verdict in 'Both have merits. xxx")
    assert len(found[0].reason) < 110
    assert found[1].reason == "no reply: 400: too long"
    assert found[2].reason == "the judge refused"
    assert found[3].reason == ""
    assert found[4].reason == "the judge's reply was cut; raise max_new_tokens"
    assert {one.annotator for one in found} == {"openai/m"}
    assert found[0].verdicts == (Verdict(asked[0].shown_first, None, replies[0].text),)


def test_fewer_replies_than_questions_are_an_error():
    asked = judge.questions(MANY[:2], PLAIN, **OPTIONS)
    with pytest.raises(ValueError, match="zip"):
        judge.by_model(MANY[:2], asked, [said("A")], "me")


# Templates


def saved(folder, text: str) -> str:
    path = folder / "judge.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


WHOLE = "{{ instruction }} {{ first }} {{ second }}"


def test_a_template_of_ones_own(tmp_path):
    path = saved(
        tmp_path,
        "  {{ instruction|upper }}?{% if input %} ({{ input }}){% endif %}\n\n"
        "1: {{ first }}\n2: {{ second }}\n",
    )
    rows = [pair(0, input="now"), pair(1)]
    one, two = judge.questions(rows, judge.template(path), **OPTIONS)
    assert one.request.prompt.startswith("DO 0? (now)\n1: ")
    assert two.request.prompt.startswith("DO 1?\n1: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Which is better?", "does not show {{ instruction }}"),
        ("{{ first }} {{ second }}", "does not show {{ instruction }}"),
        ("{{ instruction }} {{ first }}", "does not show {{ second }}"),
        ("{{ instruction }} {{ second }} {% set x = first %}", "does not show {{ first }}"),
        (WHOLE + "{{ instrution }}", "no field {{ instrution }}; did you mean instruction?"),
        (WHOLE + "{{ xyz }}", "no field {{ xyz }}; there are instruction, input, first, sec"),
        (WHOLE + "{% if %}", ":1: is no jinja2 template"),
        (WHOLE + "{{ first.nothing.at.all }}", "judge.txt: cannot be filled ("),
        (WHOLE + "{{ ''.__class__.mro() }}", "judge.txt: cannot be filled ("),
        (b"\xff{{ instruction }}", "cannot be read (invalid UTF-8)"),
    ],
)
def test_templates_that_are_none(tmp_path, text, message):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        judge.template(saved(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_no_template(tmp_path):
    with pytest.raises(
        InputError, match=r"template_file=.*none\.txt: cannot be read \(No such"
    ):
        judge.template(str(tmp_path / "none.txt"))


def test_a_template_that_hides_the_input(tmp_path):
    template = judge.template(saved(tmp_path, WHOLE))
    assert len(judge.questions([pair(0)], template, **OPTIONS)) == 1
    with pytest.raises(InputError, match=r"shows no \{\{ input \}\}, and 2 rows have one"):
        judge.questions([pair(0, input="a"), pair(1), pair(2, input="b")], template, **OPTIONS)


# Judges in Python


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A user's module of judges, in the current folder."""
    name = f"judges_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        "def length(prompts, responses):\n"
        "    return [len(response) for response in responses]\n"
        "def whole(prompts, responses, finished):\n"
        "    return list(finished)\n"
        "def inputs(prompts, responses):\n"
        "    return [response in prompt for prompt, response in zip(prompts, responses)]\n"
        "def broken(prompts, responses):\n"
        "    return [float('nan')] * len(responses)\n"
    )
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


def test_a_function_as_judge(module):
    rows = [Comparison("x", "", "long", "longer"), Comparison("x", "", "b", "a"), pair(0)]
    found = judge.by_function(rows, f"{module}:length")
    assert [one.preference for one in found] == [2, 1.5, 1]
    assert {one.annotator for one in found} == {f"{module}:length"}
    back = judge.by_function([swapped(one) for one in rows], f"{module}:length")
    assert [one.preference for one in back] == [1, 1.5, 2]


def test_a_function_is_told_what_it_asks_for(module):
    rows = [pair(0, finished_1=False), pair(1, finished_2=False), pair(2)]
    found = judge.by_function(rows, f"{module}:whole")
    assert [one.preference for one in found] == [2, 1, 1.5]
    one = Comparison("do", "the input", "do", "do\n\nthe input")
    assert judge.by_function([one], f"{module}:inputs")[0].preference == 1.5


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("broken", "response 1 of 1: returned NaN or infinity"),
        ("none", "cannot be loaded"),
    ],
)
def test_a_function_that_is_no_judge(module, function, message):
    with pytest.raises(InputError, match=message):
        judge.by_function([pair(0)], f"{module}:{function}")


def test_the_gold_judge_of_the_embedded_world():
    answer = "the opposite of full is empty"
    one = Comparison("opposite of full", "", "the opposite of full is red", answer)
    assert judge.by_function([one], "fgrlhf_jax.tiny_world.judge:judge")[0].preference == 2


def test_a_judge_of_sentiment():
    pytest.importorskip("vaderSentiment")
    one = Comparison("Write a review.", "", "A dull, awful film.", "A bright, superb film.")
    assert judge.by_function([one], "fgrlhf_jax.feedback.judges.vader:judge")[0].preference == 2
