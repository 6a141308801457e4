"""Annotation files read, written and summed up, against alpaca_eval's own figures."""

import json
import math
import re
import statistics

import pytest

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.judges import alpaca_eval
from fgrlhf_jax.feedback.judges.alpaca_eval import Comparison, Verdict


def row(number: int, preference, **fields) -> dict:
    texts = {"output_1": f"the reference's {number}", "output_2": f"ours {number}"}
    return {"instruction": f"do {number}", "preference": preference} | texts | fields


def saved(folder, rows, name="annotations.json"):
    path = folder / name
    path.write_text(json.dumps(rows) if name.endswith("json") else "\n".join(rows))
    return path


def made(*preferences, **fields) -> list[Comparison]:
    return [
        Comparison(f"do {n}", "", f"reference {n}", f"model's {n}", value, **fields)
        for n, value in enumerate(preferences)
    ]


def test_a_published_file(tmp_path):
    """text-davinci-001 on AlpacaEval: 112 won, 20 drawn (0), 672 lost, one without a verdict."""
    given = [1.0] * 672 + [0.0] * 20 + [2.0] * 112 + [None]
    rows = [row(n, value, annotator="alpaca_eval_gpt4") for n, value in enumerate(given)]
    found = alpaca_eval.summary(alpaca_eval.read(saved(tmp_path, rows)))
    assert round(found["win_rate"], 4) == 15.1741
    assert round(found["se"], 4) == 1.2351
    counts = {"n": 804, "wins": 112, "losses": 672, "draws": 20, "unparsed": 1}
    assert {name: found[name] for name in counts} == counts


def test_by_hand():
    rows = made(1.0, 2.0, 1.5, 1.2, None, generator_1="r", generator_2="m")
    found = alpaca_eval.summary(rows)
    assert found["win_rate"] == pytest.approx(100 * (0 + 1 + 0.5 + 0.2) / 4)
    assert found["se"] == pytest.approx(100 * statistics.stdev([0, 1, 0.5, 0.2]) / 2)
    assert (found["n"], found["draws"], found["unparsed"]) == (4, 1, 1)
    assert (found["wins"], found["losses"]) == (1, 2)
    assert (found["length"], found["reference_length"]) == (9, 11)
    assert found["first_shown"] is None
    assert found["length_controlled_win_rate"] is None
    assert "too few" in found["length_controlled_reason"]


@pytest.mark.parametrize(
    ("given", "want"),
    [
        *((value, value) for value in (1.0, 2.0, 1.5, 1.25, None)),
        (1, 1.0),
        (0, 1.5),
        (0.0, 1.5),
        # alpaca_eval drops what is no preference.
        *((value, None) for value in (math.nan, -1, 0.5, 2.01, 7, math.inf)),
    ],
)
def test_preferences(tmp_path, given, want):
    (one,) = alpaca_eval.read(saved(tmp_path, [row(0, given)]))
    assert one.preference == want
    assert type(one.preference) in (float, type(None))


def test_what_the_judge_was_shown_first():
    """Of five decided verdicts three are for the first shown, whichever output that was."""
    said = [(1, "first"), (2, "first"), (1, "second"), (2, "second"), (1, "first")]
    others = (Verdict(1, "tie", ""), Verdict(2, None, ""))
    rows = [
        Comparison(f"{n}", "", "a", "b", 1.0, verdicts=(Verdict(*verdict, ""), *others))
        for n, verdict in enumerate(said)
    ]
    found = alpaca_eval.summary(rows)
    assert (found["first_shown"], found["verdicts"]) == (60, 5)


def test_what_is_written_is_read_again(tmp_path):
    rows = [
        *made(1.0, 2.0, 1.5, 1.25, None, generator_1="r", generator_2="m", annotator="j"),
        Comparison("ä\u2028\n", "more", "", "🙂", None, reason="said: who knows"),
        Comparison("x", "", "a", "b", 1.5, finished_1=False, finished_2=False),
        Comparison("y", "", "a", "b", 2.0, verdicts=(Verdict(2, "first", "A"),)),
        Comparison(
            "z", "", "a", "b", None, verdicts=(Verdict(1, None, "hm"), Verdict(2, "tie", "C"))
        ),
    ]
    path = tmp_path / "new" / "annotations.json"
    alpaca_eval.write(path, rows)
    assert alpaca_eval.read(path) == rows
    first, *_, last = json.loads(path.read_text())
    assert first == {
        "instruction": "do 0",
        "input": "",
        "output_1": "reference 0",
        "output_2": "model's 0",
        "preference": 1.0,
        "generator_1": "r",
        "generator_2": "m",
        "annotator": "j",
    }
    assert last["verdicts"][1] == {"shown_first": 2, "said": "tie", "reply": "C"}


def test_jsonl_with_blank_lines_and_a_byte_order_mark(tmp_path):
    lines = ["\ufeff" + json.dumps(row(0, 1)), "", json.dumps(row(1, 2)) + "\r", ""]
    path = saved(tmp_path, lines, "annotations.jsonl")
    assert [one.preference for one in alpaca_eval.read(path)] == [1.0, 2.0]


def without(name: str) -> dict:
    return {key: value for key, value in row(0, 1.0).items() if key != name}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no rows"),
        ("[]", "holds no rows"),
        ("[1]", "row 1: is not an object"),
        ('{"instruction": ', "malformed JSON"),
        (json.dumps(row(0, 1)) + "\n{", "malformed JSON"),
        (json.dumps({"win_rate": 1}, indent=2), "row 1: misses instruction, output_1"),
        ("[" * 100_000, "malformed JSON"),
        (b"\xff\xfe", "invalid UTF-8"),
        (json.dumps([row(0, 1), row(1, 1, output_2="\ud800")]), "row 2: holds invalid Unicode"),
        *(
            (
                json.dumps([row(0, 1.0), without(name)]),
                f"row 2: misses {name}; an annotation of",
            )
            for name in ("instruction", "output_1", "output_2", "preference")
        ),
        (json.dumps([row(0, 1, output_1=["a"])]), "row 1: output_1 is ['a'], not a string"),
        (json.dumps([row(0, 1, generator_2=3)]), "row 1: generator_2 is 3, not a string"),
        *(
            (json.dumps([row(0, value)]), "it must be a number from 1 ")
            for value in ("1", True, [1], "model_2")
        ),
        *(
            (json.dumps([row(0, 1, verdicts=value)]), "row 1: verdicts is ")
            for value in (3, ["x"], [{"said": "first"}], "first")
        ),
        (
            json.dumps([row(0, 1, verdicts=[{"shown_first": 3, "said": "tie", "reply": ""}])]),
            "row 1: verdicts is ",
        ),
        (
            json.dumps([{"instruction": "x", "output": "y", "generator": "z"}]),
            "misses output_1, output_2, preference",
        ),
    ],
)
def test_files_that_are_none(tmp_path, content, message):
    path = tmp_path / "file.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=re.escape(message)) as said:
        alpaca_eval.read(path)
    assert str(said.value).startswith(str(path))
    assert "\n" not in str(said.value)


def test_no_file(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.json: cannot be read"):
        alpaca_eval.read(tmp_path / "nowhere.json")


def test_no_preference_at_all():
    with pytest.raises(InputError, match="none of 2 comparisons has a preference"):
        alpaca_eval.summary(made(None, None))


@pytest.mark.parametrize("side", ["generator_1", "generator_2"])
def test_several_models_in_one_file(side):
    rows = made(1.0, **{side: "a"}) + made(2.0, **{side: "b"})
    with pytest.raises(InputError, match=f"{side} is a in some rows and b in others"):
        alpaca_eval.summary(rows)
    assert alpaca_eval.summary(made(1.0, **{side: "a"}) + made(2.0))["n"] == 2


def test_one_comparison_has_no_error():
    found = alpaca_eval.summary(made(2.0))
    assert (found["win_rate"], found["se"]) == (100, None)


def swapped(one: Comparison) -> Comparison:
    """The reference and the model in each other's place."""
    preference = None if one.preference is None else 3 - one.preference
    return Comparison(one.instruction, one.input, one.output_2, one.output_1, preference)


def test_what_one_wins_the_other_loses():
    rows = made(1.0, 1.0, 2.0, 1.5, 1.3, None)
    there = alpaca_eval.summary(rows)
    back = alpaca_eval.summary([swapped(one) for one in rows])
    assert there["win_rate"] + back["win_rate"] == pytest.approx(100)
    for name in ("se", "n", "draws", "unparsed"):
        assert there[name] == back[name]
    assert (there["wins"], there["length"]) == (back["losses"], back["reference_length"])


def test_two_models_are_paired_by_prompt():
    """In another order, and without the prompts at which one of them has no verdict."""
    one = made(2.0, 1.0, 1.5, None, 2.0)
    other = made(1.0, 1.0, 1.0, 1.0, None)[::-1]
    found = alpaca_eval.paired(one, other, seed=1)
    assert found["n"] == 3
    assert found["difference"] == pytest.approx(50)
    assert found["low"] <= 50 <= found["high"]
    back = alpaca_eval.paired(other, one, seed=1)
    assert back["difference"] == pytest.approx(-50)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (
            made(1.0, 2.0),
            made(1.0),
            "1 prompts are of one model only, the first of them 'do 1'",
        ),
        (made(1.0), made(2.0)[:1] * 2, "of the 2 comparisons of model 2 some have the same"),
        (
            made(1.0),
            [Comparison("do 0", "", "another", "b", 1.0)],
            "output_1 differs at 1 of 1 prompts; compare both models with the same reference",
        ),
        (made(1.0, None), made(None, 2.0), "no prompt has a preference for both models"),
    ],
)
def test_models_that_cannot_be_paired(one, other, message):
    with pytest.raises(InputError, match=re.escape(message)):
        alpaca_eval.paired(one, other)
