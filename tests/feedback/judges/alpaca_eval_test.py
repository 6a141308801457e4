"""Files of annotations and their summary, against alpaca_eval's own figures."""

import json
import math
import re
import statistics
from pathlib import Path

import pytest

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.judges import alpaca_eval
from fgrlhf_jax.feedback.judges.alpaca_eval import Comparison, Verdict
from fgrlhf_jax.runtime.files import write_json


def row(number: int, preference, **fields) -> dict:
    texts = {"output_1": f"the reference's {number}", "output_2": f"ours {number}"}
    return {"instruction": f"do {number}", "preference": preference} | texts | fields


def read(rows) -> list[Comparison]:
    write_json("annotations.json", rows)
    return alpaca_eval.read("annotations.json")


def comparisons(*preferences, **fields) -> list[Comparison]:
    return [
        Comparison(f"do {n}", "", f"reference {n}", f"model's {n}", value, **fields)
        for n, value in enumerate(preferences)
    ]


def test_a_published_file():
    """text-davinci-001 on AlpacaEval: 112 won, 20 drawn (0), 672 lost, one without a verdict."""
    preferences = [1.0] * 672 + [0.0] * 20 + [2.0] * 112 + [None]
    rows = [row(n, value, annotator="alpaca_eval_gpt4") for n, value in enumerate(preferences)]
    results = alpaca_eval.summarize(read(rows))
    assert (round(results["win_rate"], 4), round(results["se"], 4)) == (15.1741, 1.2351)
    counts = {"n": 804, "wins": 112, "losses": 672, "draws": 20, "unparsed": 1}
    assert counts.items() <= results.items()


def test_by_hand():
    rows = comparisons(1.0, 2.0, 1.5, 1.2, None, generator_1="r", generator_2="m")
    results = alpaca_eval.summarize(rows)
    assert results["win_rate"] == pytest.approx(100 * (0 + 1 + 0.5 + 0.2) / 4)
    assert results["se"] == pytest.approx(100 * statistics.stdev([0, 1, 0.5, 0.2]) / 2)
    counts = {"n": 4, "draws": 1, "unparsed": 1, "wins": 1, "losses": 2}
    lengths = {"length": 9, "reference_length": 11, "length_controlled_win_rate": None}
    assert results.items() >= {**counts, **lengths, "first_shown": None}.items()
    assert "too few" in results["length_controlled_reason"]
    alone = alpaca_eval.summarize(comparisons(2.0))
    assert (alone["win_rate"], alone["se"]) == (100, None)
    assert alpaca_eval.summarize(comparisons(1.0, generator_1="a") + comparisons(2.0))["n"] == 2


def test_values_that_are_no_preference_are_none():
    values = [1.0, 2, 1.25, None, 0, 0.0, math.nan, -1, 0.5, 2.01, 7, math.inf]
    rows = read([row(0, value, finished_1="false") for value in values])
    assert not any(each.finished_1 for each in rows)
    assert [each.preference for each in rows] == [1, 2, 1.25, None, 1.5, 1.5] + [None] * 6


def test_a_round_trip():
    names = {"generator_1": "r", "generator_2": "m", "annotator": "j"}
    verdicts = Verdict(1, None, "hm"), Verdict(2, "tie", "C"), Verdict(2, "first", "A")
    rows = [
        *comparisons(1.0, 1.25, None, **names),
        Comparison("ä\u2028\n", "more", "", "🙂", None, reason="who knows"),
        Comparison("x", "", "a", "b", 1.5, finished_1=False, finished_2=False),
        Comparison("z", "", "a", "b", None, verdicts=verdicts),
    ]
    alpaca_eval.write("new/annotations.json", rows)
    assert alpaca_eval.read("new/annotations.json") == rows
    first, *_, last = json.loads(Path("new/annotations.json").read_text())
    texts = {"instruction": "do 0", "input": "", "output_1": "reference 0", "output_2": "model's 0"}
    assert first == {**texts, "preference": 1.0, **names}
    assert last["verdicts"][1] == {"shown_first": 2, "said": "tie", "reply": "C"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], ": holds no rows"),
        ([1], ":row 1: is not an object"),
        ([{"instruction": "a"}], "row 1: misses the field 'output_1'"),
        ([row(0, 1, output_1=["a"])], "row 1: the field 'output_1' is [\"a\"], not a string"),
        *(([row(0, x)], "row 1: preference is ") for x in ("1", True, [1], {})),
        ([row(0, 1, finished_2="no")], "1: finished_2 is 'no'; it must be true or false"),
        *(([row(0, 1, verdicts=x)], "1: verdicts is ") for x in (3, ["x"], [{}])),
        ([row(0, 1, verdicts=[{"shown_first": 3, "said": "tie", "reply": ""}])], "verdicts is "),
    ],
)
def test_refused_files(rows, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        read(rows)
    assert str(error.value).startswith("annotations.json")


def test_two_models_are_paired_by_prompt():
    """In any order; prompts without a preference for both are left out."""
    model = comparisons(2.0, 1.0, 1.5, None, 2.0)
    other = comparisons(1.0, 1.0, 1.0, 1.0, None)[::-1]
    paired = alpaca_eval.paired_difference(model, other, seed=1)
    assert (paired["n"], paired["difference"]) == (3, pytest.approx(50))
    assert paired["low"] <= 50 <= paired["high"]


def read_difficulty(text: str):
    Path("d.csv").write_text(text)
    return alpaca_eval.read_difficulty("d.csv")


def test_difficulties_of_a_leaderboard():
    """Its df_gamed.csv, where some preferences are empty, and a file of difficulties alone."""
    head = "preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline,model\n"
    rows = "0.25,0,-1.5,0.5,False,m\n,1,0.1,-2,False,m\n0,0,2,0.5,False,n\n"
    found = read_difficulty(head + rows)
    assert found.difficulty_N.tolist() == [0.5, -2]
    assert found.baselines_G3.tolist() == [[-1.5, 0.5, 0.25], [2, 0.5, 0]]
    found = read_difficulty(",0\n0,1.5\n1,-1\n")
    assert (found.difficulty_N.tolist(), found.baselines_G3.shape) == ([1.5, -1], (0, 3))
    for text, message in (
        ("a,b,c\n1,2,3", ":2: is not a row of numbers; give alpaca_eval's df_gamed.csv"),
        (",0\n0,1.5\n1,inf", ":3: is not a row of numbers"),
        (",0\n0,1\n2,1", ": index must number the instructions 0, 1, 2"),
    ):
        with pytest.raises(InputError, match=message):
            read_difficulty(text)


OTHER = [Comparison("do 0", "", "another reference", "b", 1.0)]
NAMED = [row for name in "ab" for row in comparisons(1.0, generator_1=name)]


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([comparisons(1.0, 2.0), comparisons(1.0)], "1 prompts are of one model only, the first"),
        ([comparisons(1.0), comparisons(2.0) * 2], "1 prompts are of one model only"),
        ([comparisons(1.0), OTHER], "output_1 differs at 1 of 1 prompts; compare both"),
        ([comparisons(1.0, None), comparisons(None, 2.0)], "no prompt has a preference for both"),
        ([NAMED], "generator_1 is a in some rows and b in others"),
        ([comparisons(None, None)], "none of 2 comparisons has a preference"),
    ],
)
def test_rows_without_a_summary_or_a_paired_difference(models, message):
    compute = alpaca_eval.paired_difference if len(models) == 2 else alpaca_eval.summarize
    with pytest.raises(InputError, match=re.escape(message)):
        compute(*models)
