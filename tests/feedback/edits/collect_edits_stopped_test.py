"""launch.collect_edits killed and interrupted: nothing is lost, doubled or asked for again."""

import contextlib
import random
import re
import signal
import subprocess
import sys
import time

import llm_server
import pytest
from collect_cases import collect, editor, files, flags, parse, write_responses
from request_cases import cached_prompts, read

from fgrlhf_jax.feedback.llm.client import Request
from launch.shared import asking

# The command, whose attempts follow each other at once.
COMMAND = """
import request_cases
from launch import collect_edits
from launch.shared import asking

request_cases.shorten_pauses()
asking.command(collect_edits.main, collect_edits.CONFIG, "")
"""


@contextlib.contextmanager
def started(*args, **fields):
    """The command in a process of its own."""
    command = [sys.executable, "-c", COMMAND, *flags(*args, **fields)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def stop(process, signal_number, condition) -> bytes:
    """Sends a signal when the condition holds; what the process then wrote to stderr."""
    while not condition():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.001)
    process.send_signal(signal_number)
    _, error = process.communicate(timeout=50)
    assert process.returncode == {signal.SIGINT: 130}.get(signal_number, -signal_number), error
    return error


@pytest.mark.slow
def test_stopped_again_and_again(tmp_path, request):
    """Killed several times, then interrupted: nothing is lost, doubled or asked for again."""
    kills, concurrency, rng, known = request.config.getoption("--kills"), 4, random.Random(4), []
    count = max(200, 30 * kills)
    complete, stopped = tmp_path / "complete.jsonl", tmp_path / "stopped.jsonl"
    responses = write_responses(tmp_path, count)
    with llm_server.running(llm_server.shaky(0.2), editor) as server:
        collect(server, responses, complete)
        server.work, before = 0.01, server.delivered.total()
        command = (server, responses, stopped, "openai")
        fields = {"limits.concurrency": concurrency}
        identity = asking.model_identity(parse(*command, **fields))
        for number in (*[signal.SIGKILL] * kills, signal.SIGINT):
            until = server.delivered.total() + rng.randint(5, 30)
            with started(*command, **fields) as process:
                error = stop(process, number, lambda: server.delivered.total() >= until)  # noqa: B023
            assert files(complete)[0].startswith(files(stopped)[0])
            assert files(complete)[1].startswith(files(stopped)[1])
            requests = [Request(prompt) for prompt in server.asked]
            cached = cached_prompts(tmp_path, requests, "stopped.cache.sqlite", identity)
            known.append({prompt: server.asked[prompt] for prompt in cached})
        assert error.decode().endswith("has saved, or begins again\n")
        with started(*command, **fields) as process:
            out, error = process.communicate(timeout=100)
            assert process.returncode == 0, error
        for prompts in known:  # what was cached at a stop was never sent again
            assert all(server.asked[prompt] == asked for prompt, asked in prompts.items())
        # Besides, what a killed program had been sent and had not yet written.
        assert server.delivered.total() <= before + count - 1 + kills * concurrency
        assert 0 < len(known[0]) < len(known[-1]) < count - 1
    assert files(stopped) == files(complete)
    assert f"{len(read(complete))} edits in".encode() in out


@pytest.mark.slow
def test_interrupted(responses, output):
    """While all threads wait for a server that says nothing."""

    def plan(prompt, before):
        return "ok" if re.search("Response [02]:", prompt) else "timeout"

    with llm_server.running(plan, editor, stall=60) as server:
        with started(server, responses, output) as process:
            began = time.monotonic()
            waiting = lambda: server.now == 8 and output.exists() and output.stat().st_size  # noqa: E731
            error = stop(process, signal.SIGINT, waiting)
        assert time.monotonic() - began < 30  # the server is silent for 60
    assert error.decode().endswith("has saved, or begins again\n")
    assert [row["id"] for row in read(output)] == ["1"]
