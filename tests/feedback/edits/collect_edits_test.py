"""launch.collect_edits: a faulty language model, replies in every form, and killed processes."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import collect_cases
import llm_server
import pytest
from collect_cases import CONFIG, collect, edited, editor, files, flags, original, parse
from llm_server import KEY
from request_cases import cached_prompts

from fgrlhf_jax.data import records, sources
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.llm.client import Request
from fgrlhf_jax.runtime.continued_rows import rejected_path
from fgrlhf_jax.runtime.files import read_jsonl, write_jsonl
from launch import collect_edits
from launch.shared import config_files, llm

REASONS = {3: "unparsed", 6: "unchanged", 8: "rewritten"}  # by the last digit of a row


@pytest.mark.parametrize("provider", ["anthropic", "openai"])
def test_edits_of_a_faulty_model(responses, tmp_path, provider, capsys, caplog, output):
    caplog.set_level("DEBUG")

    def plan(prompt, before):
        refused = "Response 21:" in prompt
        return f"400 {KEY}: too long" if refused else llm_server.shaky(0.2)(prompt, before)

    key = KEY if provider == "anthropic" else None
    with llm_server.running(plan, editor, key=key) as server:
        collect(server, responses, output, provider)
        first, printed = files(output), capsys.readouterr()
        collect(server, responses, output, provider)
        assert files(output) == first
        assert list(server.delivered.values()) == [1] * 38

    rows, rejected = read_jsonl(output), read_jsonl(rejected_path(output))
    reasons = {n: REASONS[n % 10] for n in range(40) if n % 10 in REASONS}
    reasons |= {17: "no response", 21: "rejected: 400: [key]: too long"}
    accepted = [n for n in range(40) if n not in reasons]
    assert {row["annotator"] for row in rows} == {f"{provider}/m"}
    texts = [(f"Question {n}?", "", original(n), edited(n), str(n + 1)) for n in accepted]
    assert sources.read(str(output)) == [records.Edit(*each) for each in texts]
    assert [row["reason"] for row in rejected] == [reasons[n] for n in sorted(reasons)]
    assert rejected[0]["reply"] == "I'm sorry, but I can't help with that."
    assert rejected[1]["reply"].startswith("Sure!\n\n<edited_response>\nResponse 6")
    assert [n for n, row in zip(accepted, rows, strict=True) if "reply" in row] == [9, 19, 29, 39]
    for text in (
        "4 of them had something around them, which was taken off (field reply)",
        f"14 rows set aside in {rejected_path(output)}: 4 unparsed, 4 unchanged, 4 rewritten, "
        "1 no response, 1 rejected; a reply begins",
        *(f"26 edits in {output}, median word change ratio 0.", f"--config.train={output}"),
        f"python -m launch.edit_report --config.input={output}\n",
    ):
        assert text in printed.out
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert KEY.encode() not in written
    assert KEY not in printed.out + printed.err + caplog.text


def test_an_output_of_other_settings_is_refused(responses, tmp_path, output):
    template, other = tmp_path / "t.txt", tmp_path / "other.jsonl"
    template.write_text("Other: {{ response }}")
    other.write_text(responses.read_text().replace("Question 1?", "Question 1 again?"))
    with llm_server.running(answer=editor) as server:
        collect(server, responses, output, limit=3)
        collect(server, responses, output, limit=5)  # more rows continue it
        before = output.read_bytes()
        changes = [{"template_file": template}, {"template": "paper"}, {"model": 1}]
        for change in ({}, *changes, {"max_change_ratio": 1}):
            with pytest.raises(InputError, match="choose another output, or move this one"):
                collect(server, responses if change else other, output, limit=5, **change)
        assert output.read_bytes() == before


def test_a_dry_run_sends_nothing(responses, tmp_path, capsys, monkeypatch, output):
    prices = {"price_input": 3, "price_output": 15, "dry_run": True}
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with llm_server.running(answer=editor) as server:
        collect(server, responses, output, "anthropic", **prices)
        assert not server.received
        assert sorted(path.name for path in tmp_path.iterdir()) == ["responses.jsonl"]
        out = capsys.readouterr().out
        collect(server, responses, output, limit=10)
        capsys.readouterr()
        collect(server, responses, output, dry_run=True)
    assert out.count("== prompt ") == 3
    assert "== prompt 1 of 39\nQuestion: Question 0?\n\nResponse: Response 0: the quick" in out
    match = re.search(r"39 requests to anthropic/m: about (.+) tokens to read, about (.+), ", out)
    tokens, written = (int(number.replace(",", "")) for number in match.groups())
    assert 100 < tokens / 39 < 200
    assert 12 < written / 39 < 25
    cost = f"cost at price_input and price_output: about {(3 * tokens + 15 * written) / 1e6:.2f}"
    assert all(text in out for text in ("at most 39,936 to write", f"{cost}, at most 0.6"))
    cached = capsys.readouterr().out
    assert "29 requests to openai/m: about" in cached
    assert "10 of 39 prompts are answered already" in cached
    monkeypatch.setattr(sys, "argv", ["collect_edits", "--dry-run"])
    before = signal.getsignal(signal.SIGTERM)
    llm.command(collect_edits.main, CONFIG, "")
    signal.signal(signal.SIGTERM, before)
    assert "20 requests to anthropic/MODEL" in capsys.readouterr().out


def test_the_format_of_replies():
    for provider, fields, expected in (
        *((provider, {}, "json_schema") for provider in ("openai", "anthropic")),
        *(("local", {}, "text"), ("openai", {"reply_format": "text"}, "text")),
        ("openai", {"base_url": "http://127.0.0.1:9/v1"}, "text"),
    ):
        config = config_files.load(CONFIG)
        config.update({"provider": provider} | fields)
        assert llm.reply_format(config) == expected


def test_replies_under_a_schema(responses, output):
    def answer(prompt):
        assert "<edited_response>" not in prompt
        return json.dumps({"edited_response": edited(int(re.search(r"Response (\d+)", prompt)[1]))})

    with llm_server.running(answer=answer) as server:
        collect(server, responses, output, reply_format="json_schema", limit=10)
        schema = server.bodies[0]["response_format"]["json_schema"]["schema"]
    fields = {"type": "object", "properties": {"edited_response": {"type": "string"}}}
    assert schema == {**fields, "required": ["edited_response"], "additionalProperties": False}
    changed = [edited(n) for n in range(10) if edited(n) != original(n)]
    assert [row["edited"] for row in read_jsonl(output)] == changed


def test_the_papers_prompt_with_text_around_the_edits(responses, output, capsys):
    def answer(prompt):
        assert prompt.endswith("try to keep most of the response unchanged.")
        n = int(re.search(r"Response (\d+)", prompt)[1])
        note = "" if n % 2 else "\n\nIch habe ein Wort geändert."
        return f"Hier ist die überarbeitete Antwort:\n\n{edited(n)}{note}"

    with llm_server.running(answer=answer) as server:
        collect(server, responses, output, template="paper")
    accepted = [n for n in range(1, 40, 2) if n != 17]
    assert [row["edited"] for row in read_jsonl(output)] == [edited(n) for n in accepted]
    assert "20 doubtful" in capsys.readouterr().out


def test_the_last_turn_of_a_conversation_is_edited(tmp_path, output):
    turns = [("user", "Hi"), ("assistant", "Hello"), ("user", "Go on"), ("assistant", original(4))]
    messages = [{"role": role, "content": text} for role, text in turns]
    write_jsonl(tmp_path / "chat.jsonl", [{"messages": messages}])
    with llm_server.running(answer=editor) as server:
        collect(server, tmp_path / "chat.jsonl", output)
    (prompt,) = server.received
    assert prompt.index("Hello") < prompt.index("Go on") < prompt.index(f"Response: {original(4)}")
    (row,), (edit,) = read_jsonl(output), sources.read(str(output))
    assert row["messages"] == messages[:-1]
    assert (edit.original, edit.edited) == (original(4), edited(4))
    assert [turn.content for turn in edit.messages] == ["Hi", "Hello", "Go on"]


def test_responses_too_long_for_a_reply_are_reported_and_not_sent(output, capsys, refused):
    rows = [{"instruction": "q", "output": original(n) + " word" * 400 * (n < 7)} for n in range(9)]
    write_jsonl("rows.jsonl", rows)
    message = r"cannot hold the edit of 7 of 9 responses \(row 1, 2, 3, 4, 5, …\), the longest of"
    message += r" about 5\d\d tokens; set --config.max_new_tokens=700, or they are set aside"
    with llm_server.running(answer=editor) as server:
        for dry_run in (True, False):
            collect(server, "rows.jsonl", output, max_new_tokens=300, dry_run=dry_run)
            assert re.search(message, capsys.readouterr().err)
        assert len(server.received) == 2
        words = flags(server, "rows.jsonl", "none.jsonl", limit=7, max_new_tokens=300)
        assert refused(collect_edits, *words).endswith("max_new_tokens=700")
    reasons = [row["reason"] for row in read_jsonl(rejected_path(output))]
    assert reasons == ["too long"] * 7 + ["rewritten"]


def test_a_run_without_an_edit_fails(responses, output):
    aside = rf"14 rows set aside in {rejected_path(output)}: 14 unparsed; a reply begins 'No.'; see"
    failing = pytest.raises(InputError, match=f"no usable edit; {aside} the replies")
    with llm_server.running(answer=lambda prompt: "No.") as server, failing:
        collect(server, responses, output, limit=14)
    assert len(read_jsonl(rejected_path(output))) == 14


def test_a_local_model_is_known_by_the_content_of_its_files(tmp_path):
    config, weights, known = config_files.load(CONFIG), tmp_path / "weights", []
    config.update({"provider": "local", "model": str(tmp_path)})
    for content in "112":
        weights.write_text(content)
        os.utime(weights, (len(known), len(known)))
        known.append(llm.model_identity(config))
    assert known[0] == known[1] != known[2]


# The command without pauses between tries.
COMMAND = """
import request_cases
from launch import collect_edits
from launch.shared import llm

request_cases.shorten_pauses()
llm.command(collect_edits.main, collect_edits.CONFIG, "")
"""


@contextlib.contextmanager
def started(*args, **fields):
    """The command in a new process."""
    command = [sys.executable, "-c", COMMAND, *flags(*args, **fields)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def stop(process, signal_number, condition) -> bytes:
    """Sends a signal when the condition holds; returns what the process then wrote to stderr."""
    while not condition():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.001)
    process.send_signal(signal_number)
    _, error = process.communicate(timeout=50)
    assert process.returncode == {signal.SIGINT: 130}.get(signal_number, -signal_number), error
    return error


@pytest.mark.slow
def test_killed_several_times_and_interrupted(tmp_path, request):
    """Nothing is lost, doubled or requested again."""
    kills, concurrency, rng, known = request.config.getoption("--kills"), 4, random.Random(4), []
    count, complete, stopped = max(200, 30 * kills), tmp_path / "all.jsonl", tmp_path / "part.jsonl"
    responses = collect_cases.write_responses(tmp_path, count)
    with llm_server.running(llm_server.shaky(0.2), editor) as server:
        collect(server, responses, complete)
        server.work, before = 0.01, server.delivered.total()
        command = (server, responses, stopped, "openai")
        fields = {"limits.concurrency": concurrency}
        identity = llm.model_identity(parse(*command, **fields))
        for number in (*[signal.SIGKILL] * kills, signal.SIGINT):
            until = server.delivered.total() + rng.randint(5, 30)
            with started(*command, **fields) as process:
                error = stop(process, number, lambda: server.delivered.total() >= until)  # noqa: B023
            assert all(map(bytes.startswith, files(complete), files(stopped)))
            requests = [Request(prompt) for prompt in server.received]
            cached = cached_prompts(tmp_path, requests, "part.cache.sqlite", identity)
            known.append({prompt: server.received[prompt] for prompt in cached})
        assert error.decode().endswith("has saved, or begins again\n")
        with started(*command, **fields) as process:
            out, error = process.communicate(timeout=100)
            assert process.returncode == 0, error
        for prompts in known:  # what was cached at a stop was never sent again
            assert all(server.received[prompt] == count for prompt, count in prompts.items())
        # Replies that a killed process had received and not yet written are sent twice.
        assert server.delivered.total() <= before + count - 1 + kills * concurrency
        assert 0 < len(known[0]) < len(known[-1]) < count - 1
    assert files(stopped) == files(complete)
    assert f"{len(read_jsonl(complete))} edits in".encode() in out


@pytest.mark.slow
def test_interrupted_while_a_server_does_not_answer(responses, output):
    def plan(prompt, before):
        return "ok" if re.search("Response [02]:", prompt) else "timeout"

    def is_waiting():
        return server.now == 8 and output.exists() and output.stat().st_size

    with llm_server.running(plan, editor, stall=60) as server:
        with started(server, responses, output) as process:
            began = time.monotonic()
            error = stop(process, signal.SIGINT, is_waiting)
        assert time.monotonic() - began < 30  # the server waits for 60
    assert error.decode().endswith("has saved, or begins again\n")
    assert [row["id"] for row in read_jsonl(output)] == ["1"]
