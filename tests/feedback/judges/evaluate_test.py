"""launch.evaluate: win rates from responses or annotations, also with a faulty judge."""

import hashlib
import json
import re
import statistics
from pathlib import Path

import llm_server
import pytest
from request_cases import launch

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime.files import write_json
from launch import evaluate

PROMPTS = 40
FILES = {"outputs": "a.json", "reference": "b.json"}


@pytest.fixture(autouse=True)
def models():
    """Responses of three models, each with its quality; 14 prompts have an input."""
    for name in ("a", "b", "c"):
        write_json(f"{name}.json", responses(name))


def quality(name: str, number: int) -> int:
    return hashlib.sha256(f"{name} {number}".encode()).digest()[0] % 5


def responses(name: str) -> list[dict]:
    texts = [(f"do {n}", "" if n % 3 else "fast", quality(name, n)) for n in range(PROMPTS)]
    return [
        {"instruction": x, "input": y, "generator": name, "output": f"quality {z}, of {name}"}
        for x, y, z in texts
    ]


def judge(prompt: str) -> str:
    """A reply that prefers the response of higher quality."""
    first, second = map(int, re.findall(r"quality (\d)", prompt))
    label = "tie" if first == second else "AB"[second > first]
    return f"They differ.\nVERDICT: {label}" if "VERDICT" in prompt else f'{{"verdict": "{label}"}}'


def run(**fields) -> None:
    launch(evaluate, **fields, overwrite=True)


def run_judged(answer=judge, provider: str = "openai", **fields) -> llm_server.Server:
    """Runs the command with a judge behind a server; returns the server with its records."""
    with llm_server.running(answer=answer, key=llm_server.KEY) as server:
        url = server.url + "/v1" * (provider == "openai")
        address = {"provider": provider, "model": "m", "base_url": url}
        run(**FILES | address | {"output": "eval.json"} | fields)
    return server


def result(path: str = "eval.json") -> dict:
    return json.loads(Path(path).read_text())


def expected(model: str, reference: str) -> list[float]:
    margins = [quality(model, n) - quality(reference, n) for n in range(PROMPTS)]
    return [0.5 if m == 0 else float(m > 0) for m in margins]


@pytest.mark.parametrize("reply_format", ["text", "json_schema"])
@pytest.mark.parametrize("provider", ["anthropic", "openai"])
def test_a_model_against_a_reference(capsys, provider, reply_format):
    server = run_judged(provider=provider, reply_format=reply_format)
    assert sum(server.received.values()) == PROMPTS
    sent = json.dumps(server.bodies)
    assert ("VERDICT" in sent) == (reply_format == "text")
    assert ('"enum": ["A", "B", "tie"]' in sent) == (reply_format == "json_schema")
    outcomes, found = expected("a", "b"), result()
    assert found["win_rate"] == pytest.approx(100 * statistics.mean(outcomes))
    names = {"model": "a", "reference": "b", "annotator": f"{provider}/m"}
    counts = {"n": PROMPTS, "unparsed": 0, "draws": outcomes.count(0.5)}
    assert found.items() >= {**names, **counts}.items()
    out = capsys.readouterr().out
    assert f"\na against b, judged by {provider}/m\n" in out
    shown = "{win_rate:.2f} ± {se:.2f} %, 95 % interval {win_rate_low:.2f} to {win_rate_high:.2f}"
    assert re.search(f"{shown}, over {{n}}: .* {{draws}} draws; 0 unparsed".format(**found), out)
    assert llm_server.KEY not in out


def test_annotations_give_the_same_results_again(capsys):
    run_judged(both_orders=True)
    results = result()
    assert results["first_shown"] == 50  # in both orders
    assert [row["preference"] - 1 for row in result("eval.annotations.json")] == expected("a", "b")
    printed = capsys.readouterr().out
    run(annotations="eval.annotations.json", output="again.json")
    assert result("again.json") == results
    assert capsys.readouterr().out.splitlines()[:-1] == printed.splitlines()[1:-1]


def test_intervals_difficulties_and_limits(capsys, refused):
    texts = {"output_1": "r", "output_2": "m", "preference": 2}
    rows = [{"instruction": f"{n}", **texts} for n in range(20)]
    write_json("x.json", rows)
    run(annotations="x.json")
    figures = "100.00 %, 95 % interval 83.89 to 100.00, over 20: 20 won"
    assert figures in capsys.readouterr().out
    rows = [row | {"preference": 1 + n % 2} for n, row in enumerate(rows)]
    write_json("y.json", rows)
    Path("difficulty.csv").write_text(",d\n" + "".join(f"{n},{n / 10}\n" for n in range(20)))
    run(annotations="y.json", difficulty="difficulty.csv", output="eval.json")
    assert result()["length_controlled_name"] == "length_controlled_noreg"
    assert "% (alpaca_eval's length_controlled_noreg)" in capsys.readouterr().out
    message = refused(evaluate, annotations="y.json", difficulty="difficulty.csv", limit=19)
    assert "difficulty: is of 20 instructions, and 19 are compared" in message
    write_json("z.json", rows[::-1])
    run(annotations="y.json,z.json", limit=3, output="eval.json")  # the same prompts of both
    assert (result()["n"], result()["other"]["n"], result()["paired"]["n"]) == (3, 3, 3)
    assert result()["paired"]["difference"] == 0


def test_two_models_against_the_same_reference(capsys):
    run_judged(outputs="a.json,c.json")
    found = result()
    a, c = (100 * statistics.mean(expected(model, "b")) for model in "ac")
    assert (found["win_rate"], found["other"]["win_rate"]) == pytest.approx((a, c))
    paired = found["paired"]
    assert (paired["difference"], paired["n"]) == (pytest.approx(a - c), PROMPTS)
    assert f"difference      {paired['difference']:+.2f} points" in capsys.readouterr().out
    run(annotations="eval.annotations.json,eval.annotations_2.json", output="again.json")
    assert result("again.json") == found


def score(prompts, responses):
    return [int(text.split()[1][0]) for text in responses]


FUNCTION = FILES | {"judge": f"{__name__}:score", "output": "eval.json"}


def test_conversations_and_joined_inputs():
    """The judge reads all turns; the file for alpaca_eval has the whole prompt in one text."""
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello!"}]
    prompts = [{"messages": [*turns, {"role": "user", "content": f"do {n}"}]} for n in range(2)]
    prompts += [{"instruction": "do", "input": f"it {n}"} for n in range(2)]
    for name in "ab":
        write_json(f"{name}.json", [prompt | {"output": f"of {name}"} for prompt in prompts])
    server = run_judged(lambda prompt: "VERDICT: tie")
    transcript = "User: Hi.\n\nAssistant: Hello!\n\nUser: do 1"
    assert f"{transcript}\n" in "".join(server.received)
    shown = [row["instruction"] for row in result("eval.annotations.json")]
    assert shown[1:3] == [transcript, "do\n\nit 0"]


def test_null_responses(refused, capsys):
    rows = responses("a")
    write_json("a.json", [*rows[:3], rows[3] | {"output": None}, *rows[4:]])
    assert "a.json:row 4: the field 'output' is null, not a" in refused(evaluate, **FUNCTION)
    run(**FUNCTION, invalid="drop", common=True)
    assert result()["n"] == PROMPTS - 1
    assert "a.json: 1 rows left out\n  a.json:row 4: " in capsys.readouterr().err


def test_replies_without_a_verdict_are_counted(capsys):
    discursive = "### Response A\nWrong.\n\n### Response B\nRight.\n\nResponse B is better."
    reason = "the last line is not in the requested form; a reply ends '### Response A Wrong."
    run_judged(lambda prompt: discursive if "do 7\n" in prompt else judge(prompt))
    assert (result()["n"], result()["unparsed"]) == (PROMPTS - 1, 1)
    assert f"unparsed: 1 × {reason}" in capsys.readouterr().out
    with pytest.raises(InputError, match=f"no reply of the judge has a verdict: 40 × {reason}"):
        run_judged(lambda _: discursive, both_orders=True, cache="other.sqlite")
    assert {row["preference"] for row in result("eval.annotations.json")} == {None}


def test_labels_of_alpaca_eval():
    """A template that asks for m or M and nothing else."""
    Path("clf.txt").write_text("{{ instruction }}{{ input }}\nm: {{ first }}\nM: {{ second }}")
    run_judged(lambda x: "mM"["m: quality 4" not in x], template_file="clf.txt", labels="m,M")
    assert (result()["draws"], result()["unparsed"]) == (0, 0)


def test_a_judge_with_a_position_bias(capsys):
    run_judged(lambda prompt: "VERDICT: A")
    assert result()["first_shown"] == 100
    run_judged(lambda prompt: "VERDICT: A", both_orders=True)
    assert (result()["win_rate"], result()["draws"]) == (50, PROMPTS)
    assert "won 100.0 % of 80 verdicts" in capsys.readouterr().out


def test_a_function_as_judge_and_only_common_prompts(capsys, refused):
    run(**FUNCTION)
    assert result()["win_rate"] == pytest.approx(100 * statistics.mean(expected("a", "b")))
    assert (result()["annotator"], result()["first_shown"]) == (FUNCTION["judge"], None)
    assert "shown first" not in capsys.readouterr().out
    write_json("a.json", responses("a")[5:])
    write_json("c.json", responses("c")[:30])
    assert "lacks 5 that it has" in refused(evaluate, **FUNCTION, overwrite=True)
    run(**FUNCTION | {"outputs": "a.json,c.json"}, common=True)
    assert (result()["n"], result()["other"]["n"], result()["paired"]["n"]) == (25, 25, 25)
    run(**FUNCTION, common=True, limit=3)
    assert result()["n"] == 3


def test_the_embedded_world_is_the_default(capsys):
    run()
    out = capsys.readouterr().out
    assert out.startswith("the edit against the original, judged by fgrlhf_jax.tiny_world.")
    assert float(re.search(r"win rate +([\d.]+)", out)[1]) > 90
