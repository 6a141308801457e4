"""Edits by a language model, from the command line to the file, against one that misbehaves."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import llm_server
import ppo_cases
import pytest

from fgrlhf_jax.data import records
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.edits import minimality
from fgrlhf_jax.feedback.llm import cache
from fgrlhf_jax.runtime.files import write_jsonl
from launch import collect_edits
from launch.shared import asking, cli

DEFAULT = "configs/collect_edits.py"
WORDS = "the quick brown fox jumps over a lazy dog while it rains on every old roof"


def original(n: int) -> str:
    return f"Response {n}: {WORDS[4 * (n % 3) :]}."


def said(prompt: str) -> str:
    """A model that edits well, but for some rows, and always says something around it."""
    found = re.search(r"Response (\d+): .*", prompt)
    n, text = int(found[1]), found[0]
    if n % 10 == 3:
        return "I'm sorry, but I can't help with that."
    if n % 10 == 6:
        return f"Here is the edited response:\n\n{text}"
    if n % 10 == 8:
        return "Something else entirely, which nobody had asked for at all in any case."
    edited = text.replace("lazy", "sleeping" if n % 2 else "slow and lazy")
    return f'Sure! Here is my attempt:\n\n"{edited}"\n\nNote: I changed one word.'


REASONS = {3: "refusal", 6: "unchanged", 8: "rewritten"}


@pytest.fixture
def asked(tmp_path):
    """A file of 40 responses, one of them blank."""
    rows = [{"instruction": f"Question {n}?", "output": original(n)} for n in range(40)]
    rows[17]["output"] = " "
    write_jsonl(tmp_path / "asked.jsonl", rows)
    return tmp_path / "asked.jsonl"


def flags(server, input, output, provider="openai", **fields) -> list[str]:
    path = "/v1" if provider == "openai" else ""
    fields = {"provider": provider, "model": "m", "base_url": server.url + path} | fields
    fields |= {"input": input, "output": output}
    return [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]


def collect(*args, **fields) -> None:
    collect_edits.main(cli.parse(["", *flags(*args, **fields)], DEFAULT))


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """No test waits for seconds between two llm_requests."""
    limits = asking.Limits
    monkeypatch.setattr(
        asking, "Limits", lambda **given: limits(back_off=0.001, longest_wait=0.01, **given)
    )


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", llm_server.KEY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.mark.parametrize("provider", ["anthropic", "openai"])
def test_edits_of_a_model_that_misbehaves(asked, tmp_path, provider, capsys):
    output = tmp_path / "edits.jsonl"
    key = llm_server.KEY if provider == "anthropic" else None
    with llm_server.running(llm_server.shaky(0.2), said, key=key) as server:
        collect(server, asked, output, provider)
        assert set(server.delivered.values()) == {1}
        assert len(server.delivered) == 39
        first = [output.read_bytes(), cache.rejected_path(output).read_bytes()]
        told = capsys.readouterr()
        collect(server, asked, output, provider)
        assert sum(server.delivered.values()) == 39
        assert [output.read_bytes(), cache.rejected_path(output).read_bytes()] == first

    made = records.read(str(output))
    rows, aside = lines(output), lines(cache.rejected_path(output))
    kept = [n for n in range(40) if n % 10 not in REASONS and n != 17]
    assert [row["id"] for row in rows] == [str(n + 1) for n in kept]
    for n, edit, row in zip(kept, made, rows, strict=True):
        assert isinstance(edit, records.Edit)
        assert edit.instruction == f"Question {n}?"
        assert edit.original == original(n)
        assert edit.edited == original(n).replace(
            "lazy", "sleeping" if n % 2 else "slow and lazy"
        )
        assert row["annotator"] == f"{provider}/m"
    assert [row["reason"] for row in aside] == [
        REASONS.get(n % 10, "no response") for n in range(40) if n % 10 in REASONS or n == 17
    ]
    assert aside[0]["reply"] == "I'm sorry, but I can't help with that."
    assert aside[1]["reply"].startswith("Here is the edited response:\n\nResponse 6")
    assert "13 rows set aside in" in told.out
    assert "4 refusal, 4 unchanged, 4 rewritten, 1 no response" in told.out
    assert f"27 edits in {output}, median word change ratio 0." in told.out
    assert f"python -m launch.edit_report --config.input={output}\n" in told.out
    assert f"--config.train={output}" in told.out
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path != asked)
    assert llm_server.KEY.encode() not in written
    assert llm_server.KEY not in told.out + told.err


def command(*args: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "launch.collect_edits", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
def test_stopped_again_and_again(asked, tmp_path):
    """Killed, interrupted, killed: nothing is lost, doubled or asked for again."""
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    with llm_server.running(answer=said, work=0.05) as server:
        collect(server, asked, whole)
        before = sum(server.delivered.values())
        given = flags(server, asked, stopped, limits__concurrency=2)
        for until, how in ((8, signal.SIGKILL), (16, signal.SIGINT), (24, signal.SIGKILL)):
            run = command(*given)
            while sum(server.delivered.values()) < before + until:
                assert run.poll() is None, run.stderr.read()
                time.sleep(0.002)
            run.send_signal(how)
            _, error = run.communicate(timeout=60)
            assert run.returncode == (130 if how == signal.SIGINT else -how), error
            if how == signal.SIGINT:
                assert error.decode().endswith("interrupted; run the same command to go on\n")
        there = stopped.read_bytes()
        assert 0 < len(there) < len(whole.read_bytes())
        last = command(*given)
        out, error = last.communicate(timeout=120)
        assert last.returncode == 0, error
        # Besides, what a killed program had been sent and had not yet written.
        assert sum(server.delivered.values()) <= before + 39 + 2 * 2
    assert stopped.read_bytes().startswith(there)
    assert stopped.read_bytes() == whole.read_bytes()
    assert cache.rejected_path(stopped).read_bytes() == cache.rejected_path(whole).read_bytes()
    assert b"27 edits in" in out


def test_a_cap_stops_it_and_the_next_run_goes_on(asked, tmp_path):
    output = tmp_path / "edits.jsonl"
    with llm_server.running(answer=said) as server:
        for _ in range(3):
            with pytest.raises(
                InputError, match="stopped at max_requests=12 after 12 requests"
            ):
                collect(server, asked, output, limits__max_requests=12)
        assert len(lines(output)) + len(lines(cache.rejected_path(output))) >= 36
        collect(server, asked, output, limits__max_requests=12)
        assert set(server.delivered.values()) == {1}
    assert len(lines(output)) == 27


@pytest.mark.parametrize("change", ["input", "template_file", "max_change_ratio", "model"])
def test_an_output_of_something_else_is_refused(asked, tmp_path, change):
    output, template = tmp_path / "edits.jsonl", tmp_path / "t.txt"
    template.write_text("Other: {{ response }}")
    with llm_server.running(answer=said) as server:
        collect(server, asked, output, limit=3)
        collect(server, asked, output, limit=5)  # more rows go on
        before, fields = output.read_bytes(), {"limit": 5}
        if change == "input":
            asked.write_text(asked.read_text().replace("Question 1?", "Question 1 again?"))
        else:
            fields[change] = {"template_file": template, "model": "n"}.get(change, 0.9)
        with pytest.raises(InputError, match="choose another output, or move this one away"):
            collect(server, asked, output, **fields)
        assert output.read_bytes() == before


def test_preferences_and_edits_are_edited_too(tmp_path):
    rows = [
        {"instruction": "q", "output_1": original(1), "output_2": original(2), "preference": 1},
        {"instruction": "q", "original": original(4), "edited": original(5), "id": "e/1"},
        {"instruction": "q", "input": "i", "output": original(7), "generator": "g"},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    with llm_server.running(answer=said) as server:
        collect(server, tmp_path / "rows.json", tmp_path / "worse.jsonl")
        collect(server, tmp_path / "rows.json", tmp_path / "better.jsonl", side="better")
        assert any("Input: i\n" in prompt for prompt in server.asked)
    worse, better = (records.read(str(tmp_path / f"{n}.jsonl")) for n in ("worse", "better"))
    assert [edit.original for edit in worse] == [original(2), original(4), original(7)]
    assert [edit.original for edit in better] == [original(1), original(4), original(7)]
    assert [edit.id for edit in worse] == ["1", "e/1", "3"]
    assert not cache.rejected_path(tmp_path / "worse.jsonl").exists()


def test_a_local_model_is_known_by_what_its_files_hold(tmp_path):
    config = cli.load(DEFAULT)
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("1")
    config.update({"provider": "local", "model": str(model)})
    before = asking.model_identity(config)
    os.utime(model / "weights", (1, 1))
    assert asking.model_identity(config) == before
    (model / "weights").write_text("2")
    assert asking.model_identity(config) != before


def test_one_refused_request_stands_in_nobodys_way(asked, tmp_path):
    def plan(prompt, before):
        return "400 the prompt is too long: 9 > 8" if "Response 5:" in prompt else "ok"

    output = tmp_path / "edits.jsonl"
    with llm_server.running(plan, said) as server:
        collect(server, asked, output, limit=8)
    (refused,) = [row for row in lines(cache.rejected_path(output)) if row["id"] == "6"]
    assert refused["reason"].startswith("rejected: 400: ")
    assert [row["id"] for row in lines(output)] == ["1", "2", "3", "5", "8"]


def test_a_dry_run_asks_nothing(asked, tmp_path, capsys, monkeypatch):
    output = tmp_path / "edits.jsonl"
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with llm_server.running(answer=said) as server:
        given = flags(server, asked, output, "anthropic", price_input=3, price_output=15)
        monkeypatch.setattr(sys, "argv", ["collect_edits", *given, "--dry-run"])
        before = signal.getsignal(signal.SIGTERM)
        asking.command(collect_edits.main, DEFAULT, "")
        signal.signal(signal.SIGTERM, before)
        assert not server.asked
    assert sorted(path.name for path in tmp_path.iterdir()) == ["asked.jsonl"]
    out = capsys.readouterr().out
    assert out.count("== prompt ") == 3
    assert "== prompt 1 of 39\nQuestion: Question 0?\n\nResponse: Response 0: the quick" in out
    found = re.search(
        r"39 requests to anthropic/m: about ([\d,]+) tokens to read, about ([\d,]+),", out
    )
    read, written = (int(number.replace(",", "")) for number in found.groups())
    assert 39 * 100 < read < 39 * 200
    assert 39 * 12 < written < 39 * 25
    assert "at most 39,936 to write" in out
    cost = (3 * read + 15 * written) / 1e6
    assert f"cost by the given prices: about {cost:.2f}, at most 0.6" in out


def test_a_dry_run_knows_what_is_there(asked, tmp_path, capsys):
    with llm_server.running(answer=said) as server:
        collect(server, asked, tmp_path / "edits.jsonl", limit=10)
        capsys.readouterr()
        collect(server, asked, tmp_path / "edits.jsonl", dry_run=True)
    out = capsys.readouterr().out
    assert "29 requests to openai/m: about" in out
    assert "10 of 39 prompts are answered already" in out
    assert "prices" not in out


def test_without_a_file_the_embedded_world_is_shown(capsys):
    collect_edits.main(cli.parse(["", "--config.dry_run=True"], DEFAULT))
    assert "20 requests to anthropic/MODEL" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
def test_a_model_on_this_machine(tmp_path, monkeypatch, capsys):
    """A tiny one, whose edits are none."""
    ppo_cases.one_device(monkeypatch)
    model = ppo_cases.save_policy(tmp_path / "model", template="plain")
    (tmp_path / "t.txt").write_text("{{ response }}")
    fields = {
        "model": model,
        "output": tmp_path / "edits.jsonl",
        "template_file": tmp_path / "t.txt",
        "provider": "local",
        "max_new_tokens": 8,
        "max_change_ratio": 1,
    }
    named = [f"--config.{name}={value}" for name, value in fields.items()]
    collect_edits.main(cli.parse(["", *named], DEFAULT))
    told = capsys.readouterr()
    assert "20 requests (0 of them retries)" in told.err
    rows, aside = (
        lines(path) if path.exists() else []
        for path in (fields["output"], cache.rejected_path(fields["output"]))
    )
    assert len(rows) + len(aside) == 20
    assert all(row["annotator"] == f"local/{model}" for row in rows + aside)
    assert all(minimality.measure(row["original"], row["edited"]).changes for row in rows)
    collect_edits.main(cli.parse(["", *named], DEFAULT))
    assert "requests" not in capsys.readouterr().err
