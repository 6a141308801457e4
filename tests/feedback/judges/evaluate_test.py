"""launch.evaluate: from responses or annotations to win rates, with a judge that misbehaves."""

import hashlib
import json
import re
import runpy
import statistics
import sys

import llm_server
import pytest

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.judges import alpaca_eval
from fgrlhf_jax.feedback.llm import client as llm
from fgrlhf_jax.feedback.llm import local
from launch import evaluate
from launch.shared import asking, cli

DEFAULT = "configs/evaluate.py"
PROMPTS = 40


@pytest.fixture(autouse=True)
def keys(monkeypatch, tmp_path):
    monkeypatch.setenv("ANTHROPIC_API_KEY", llm_server.KEY)
    monkeypatch.setenv("OPENAI_API_KEY", llm_server.KEY)
    monkeypatch.chdir(tmp_path)


def worth(name: str, number: int) -> int:
    return hashlib.sha256(f"{name} {number}".encode()).digest()[0] % 5


def responses(name: str, size: int = PROMPTS, **fields) -> list[dict]:
    """A model's responses, which say what they are worth."""
    return [
        {
            "instruction": f"do {number}",
            "input": "fast" if number % 3 == 0 else "",
            "output": f"worth {worth(name, number)}, says {name}",
            "generator": name,
            **fields,
        }
        for number in range(size)
    ]


def judge(prompt: str) -> str:
    """The better response by what they are worth."""
    one, two = map(int, re.findall(r"worth (\d)", prompt))
    return "tie" if one == two else "AB"[two > one]


def save(name: str, rows: list[dict]) -> str:
    with open(name, "w") as file:
        json.dump(rows, file)
    return name


@pytest.fixture
def files() -> dict[str, str]:
    for name in ("a", "b", "c"):
        save(f"{name}.json", responses(name))
    return {"outputs": "a.json", "reference": "b.json"}


def run(*flags: str, **fields) -> None:
    named = [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]
    evaluate.main(cli.parse(["evaluate", *flags, *named], DEFAULT))


def judge_at(server, **fields) -> dict:
    """The fields of an OpenAI-compatible judge."""
    usual = {"provider": "openai", "model": "m", "base_url": f"{server.url}/v1"}
    return usual | {"output": "eval.json"} | fields


def result(path: str = "eval.json") -> dict:
    with open(path) as file:
        return json.load(file)


def expected(model: str, reference: str) -> list[float]:
    margins = [worth(model, n) - worth(reference, n) for n in range(PROMPTS)]
    return [0.5 if m == 0 else float(m > 0) for m in margins]


def serve(**options):
    return llm_server.running(**{"answer": judge} | options)


@pytest.mark.parametrize("provider", ["anthropic", "openai"])
def test_a_model_against_a_reference(files, capsys, provider):
    with serve(key=llm_server.KEY) as server:
        url = server.url + ("/v1" if provider == "openai" else "")
        run(**files, **judge_at(server, provider=provider, base_url=url))
        asked = sum(server.asked.values())
    won = expected("a", "b")
    found = result()
    assert found["win_rate"] == pytest.approx(100 * statistics.mean(won))
    assert found["se"] == pytest.approx(100 * statistics.stdev(won) / PROMPTS**0.5)
    assert (found["n"], found["unparsed"], found["draws"]) == (PROMPTS, 0, won.count(0.5))
    assert (found["model"], found["reference"]) == ("a", "b")
    assert found["annotator"] == f"{provider}/m"
    assert found["length"] == statistics.mean(len(row["output"]) for row in responses("a"))
    assert asked == PROMPTS
    out = capsys.readouterr().out
    assert out.splitlines()[1] == f"a against b, judged by {provider}/m"
    assert f"{found['win_rate']:.4f} ± {found['se']:.4f} % over {PROMPTS}" in out
    assert f"{found['draws']} draws; 0 unparsed" in out
    assert llm_server.KEY not in out


def test_what_was_judged_is_read_again_to_the_same_figures(files, capsys):
    with serve() as server:
        run(**files, **judge_at(server, both_orders=True))
    there = result()
    assert there["first_shown"] == 50  # in both orders
    rows = result("eval.annotations.json")
    assert {
        "instruction",
        "output_1",
        "output_2",
        "generator_1",
        "generator_2",
        "preference",
    } <= (rows[0].keys())
    assert [row["preference"] - 1 for row in rows] == expected("a", "b")
    first = capsys.readouterr().out
    run(annotations="eval.annotations.json", output="again.json")
    assert result("again.json") == there
    assert capsys.readouterr().out.splitlines()[:-1] == first.splitlines()[1:-1]


def test_a_run_goes_on_where_it_was_stopped(files):
    """A cap stops it twice; no answer that arrived is asked for again; nothing is left behind."""
    with serve(plan=llm_server.shaky(0.2)) as server:
        fields = judge_at(server, limits__max_requests=20, limits__concurrency=3)
        for _ in range(2):
            with pytest.raises(InputError, match="stopped at max_requests=20"):
                run(**files, **fields)
        run(**files, **fields)
        assert set(server.delivered.values()) == {1}
        whole = result("eval.annotations.json")
        before = sum(server.asked.values())
        run(**files, **fields)
        assert sum(server.asked.values()) == before
    run(**files, **fields)  # nobody is there any more, and nobody is needed
    assert result("eval.annotations.json") == whole
    with serve() as server:
        run(**files, **judge_at(server, output="calm.json"))
    assert result("calm.annotations.json") == whole


def test_two_models_against_the_same_reference(files, capsys):
    with serve() as server:
        run(**files | {"outputs": "a.json,c.json"}, **judge_at(server))
    found = result()
    a, c = expected("a", "b"), expected("c", "b")
    assert found["win_rate"] == pytest.approx(100 * statistics.mean(a))
    assert found["other"]["win_rate"] == pytest.approx(100 * statistics.mean(c))
    paired = found["paired"]
    assert paired["difference"] == pytest.approx(found["win_rate"] - found["other"]["win_rate"])
    assert paired["low"] < paired["difference"] < paired["high"]
    assert paired["n"] == PROMPTS
    out = capsys.readouterr().out
    assert f"difference      {paired['difference']:+.4f} points" in out
    run(
        annotations="eval.annotations.json,eval.annotations_2.json",
        output="again.json",
    )
    assert result("again.json") == found


def test_replies_that_are_no_verdict_are_counted(files, capsys):
    def sulky(prompt: str) -> str:
        return "Who am I to say?" if "do 7\n" in prompt else judge(prompt)

    def plan(prompt: str, before: int) -> str:
        return "refusal" if "do 8\n" in prompt else "400" if "do 9\n" in prompt else "ok"

    with serve(answer=sulky, plan=plan) as server:
        run(**files, **judge_at(server))
    found = result()
    assert (found["n"], found["unparsed"]) == (PROMPTS - 3, 3)
    reasons = [row["reason"] for row in result("eval.annotations.json") if "reason" in row]
    assert reasons == [
        "no verdict in 'Who am I to say?'",
        "the judge refused",
        "no reply: 400: fault by plan",
    ]
    out = capsys.readouterr().out
    assert "3 unparsed" in out
    assert "unparsed: 1 × no verdict in 'Who am I to say?'" in out


def test_a_judge_with_a_position_bias_is_found_out(files, capsys):
    with serve(answer=lambda prompt: "A") as server:
        run(**files, **judge_at(server))
        assert result()["first_shown"] == 100
        run(**files, **judge_at(server, both_orders=True))
    assert (result()["win_rate"], result()["draws"]) == (50, PROMPTS)
    assert "won 100.0 % of 80 verdicts" in capsys.readouterr().out


def test_another_seed_is_another_order(files):
    with serve() as server:
        run(**files, **judge_at(server))
        first = server.asked.copy()
        run(**files, **judge_at(server, seed=1))
        assert PROMPTS < len(server.asked) < 2 * PROMPTS
        assert all(server.asked[prompt] == 1 for prompt in first)


def test_a_function_as_judge(files, monkeypatch, tmp_path, capsys):
    (tmp_path / "own_judge.py").write_text(
        "def score(prompts, responses):\n"
        "    return [int(text.split()[1][0]) for text in responses]\n"
    )
    run(**files, judge="own_judge:score", output="eval.json")
    sys.modules.pop("own_judge")
    found = result()
    assert found["win_rate"] == pytest.approx(100 * statistics.mean(expected("a", "b")))
    assert found["annotator"] == "own_judge:score"
    assert found["first_shown"] is None
    assert "shown first" not in capsys.readouterr().out


def test_only_common_prompts(files):
    save("a.json", responses("a")[5:])
    save("c.json", responses("c")[:30])
    function = {"judge": "fgrlhf_jax.feedback.judges.vader:judge", "output": "eval.json"}
    pytest.importorskip("vaderSentiment")
    with pytest.raises(InputError, match="lacks 5 that it has"):
        run(**files, **function)
    run(**files | {"outputs": "a.json,c.json"}, **function, common=True)
    assert (result()["n"], result()["other"]["n"], result()["paired"]["n"]) == (25, 25, 25)
    run(**files | {"outputs": "a.json"}, **function, common=True, limit=3)
    assert result()["n"] == 3


@pytest.mark.parametrize("common", [False, True])
def test_a_limit_keeps_the_same_prompts_of_two_models(common):
    rows = [
        {"instruction": str(n), "output_1": "r", "output_2": "m", "preference": 1 + n % 2}
        for n in range(8)
    ]
    save("one.json", rows)
    save("two.json", rows[::-1])
    run(annotations="one.json,two.json", limit=3, common=common, output="eval.json")
    found = result()
    assert (found["n"], found["other"]["n"], found["paired"]["n"]) == (3, 3, 3)
    assert found["paired"]["difference"] == 0


def test_a_dry_run_asks_nothing(files, capsys):
    with serve() as server:
        run(**files, **judge_at(server), dry_run=True, price_output=1000.0)
        assert not server.asked
    out = capsys.readouterr().out
    assert out.count("== prompt") == 3
    assert "== prompt 3 of 40" in out
    assert "do 0" in out
    assert "40 requests to openai/m: about " in out
    assert f"cost by the given prices: at most {40 * 512 / 1000:.2f}" in out
    run(**files, judge="nothing:at_all", dry_run=True)
    assert "40 pairs for nothing:at_all; nothing would be asked" in capsys.readouterr().out


def test_the_flag_of_a_dry_run(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate", "--dry-run", "--config.limit=2"])
    monkeypatch.delitem(sys.modules, "launch.evaluate")
    runpy.run_module("launch.evaluate", run_name="__main__")
    out = capsys.readouterr().out
    assert out.count("== prompt") == 2
    assert "2 requests to anthropic/MODEL" in out


def test_without_a_flag_it_is_the_embedded_world(capsys):
    run()
    out = capsys.readouterr().out
    assert out.startswith(
        "the edit against the original, judged by fgrlhf_jax.tiny_world.judge:judge"
    )
    assert float(re.search(r"win rate +([\d.]+)", out)[1]) > 90


def test_a_local_judge(files, monkeypatch):
    """It is asked in chunks, through the same cache."""
    asked = []

    def connect(model, **options):
        assert (model, options["batch_size"]) == ("folder", 4)

        def send(requests):
            asked.append(len(requests))
            return [llm.Reply(judge(r.prompt), "end", 1, 1) for r in requests]

        return send

    monkeypatch.setattr(local, "connect", connect)
    fields = {"provider": "local", "model": "folder", "output": "eval.json"}
    run(**files, **fields, local__batch_size=4)
    run(**files, **fields, local__batch_size=4)
    assert max(asked) == 4 * asking.BATCHES_STORED
    assert sum(asked) == PROMPTS
    assert result()["win_rate"] == pytest.approx(100 * statistics.mean(expected("a", "b")))


def test_comparisons_of_the_package_are_those_of_the_command(files):
    with serve() as server:
        run(**files, **judge_at(server))
    summed = alpaca_eval.summary(alpaca_eval.read("eval.annotations.json"))
    assert summed.items() <= result().items()
