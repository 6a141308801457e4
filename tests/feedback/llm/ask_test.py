"""Many requests: every one answered, in order, asked once, whatever happens on the way."""

import _thread
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import llm_server
import pytest
import request_cases
from llm_server import KEY
from request_cases import IDENTITY, QUICK, Counting, in_cache, questions, read, run, save, says

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.llm import client as llm
from fgrlhf_jax.feedback.llm.client import Refused, Request, Transient
from fgrlhf_jax.feedback.llm.requests import Limits, Rejected, Usage, collect_replies


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)


# --- through the wire


@pytest.mark.slow
def test_a_thousand_rows_of_which_a_fifth_meet_faults(tmp_path):
    """Every other one by the other protocol."""
    requests, usage = questions(1000), Usage()
    with llm_server.running(llm_server.shaky(0.2, slow=0.05)) as server:
        ways = [
            llm.connect(provider, "m", base_url=server.url + "/v1", timeout=30)
            for provider in llm.PROVIDERS
        ]

        def send(request):
            return ways[int(request.prompt.split()[1]) % 2](request)

        counts = save(requests, send, tmp_path, usage=usage)
        asked, delivered = server.asked, server.delivered
        assert server.peak <= 8
        assert {path.split("/")[2] for path in server.paths} == {"messages", "chat"}
    assert counts == (1000, 0)
    rows = read(tmp_path / "out.jsonl")
    assert [row["prompt"] for row in rows] == [request.prompt for request in requests]
    assert all(row["text"] == llm_server.echo(row["prompt"]) for row in rows)
    assert set(delivered.values()) == {1}  # no answer that arrived was asked for again
    assert len(delivered) == 1000
    assert usage.requests == sum(asked.values())
    assert usage.retries == usage.requests - 1000
    assert 0.15 * 1000 < usage.retries < 0.35 * 1000


@pytest.mark.parametrize("chunk", [0, 4])
def test_where_all_are_refused_nothing_is_set_aside(tmp_path, chunk):
    def send(asked):
        if chunk:
            return [Refused("400: too warm")] * len(asked)
        raise Refused("400: too warm")

    with pytest.raises(InputError, match=r"10 requests in a row are refused \(400: too warm\)"):
        save(questions(30), send, tmp_path, batch_size=chunk)
    assert read(tmp_path / "out.jsonl") == []
    assert not (tmp_path / "out.rejected.jsonl").exists() or not read(
        tmp_path / "out.rejected.jsonl"
    )
    assert save(questions(30), send, tmp_path, Limits(max_refusals=0), batch_size=chunk) == (
        0,
        30,
    )


def test_many_refused_ones_with_answers_between_them(tmp_path):
    def plan(prompt, before):
        return Refused("too long") if int(prompt.split()[1]) % 10 else None

    limits = Limits(concurrency=1)
    assert save(questions(40), Counting(plan), tmp_path, limits) == (4, 36)
    assert [row["prompt"] for row in read(tmp_path / "out.rejected.jsonl")] == [
        request.prompt for n, request in enumerate(questions(40)) if n % 10
    ]


def test_refusals_before_a_cap_are_not_asked_again(tmp_path):
    counting = Counting(lambda prompt, before: Refused("too long"))
    with pytest.raises(InputError, match="max_requests=3"):
        save(questions(5), counting, tmp_path, Limits(concurrency=1, max_requests=3))
    assert save(questions(5), counting, tmp_path) == (0, 5)
    assert len(counting.asked) == 5


def test_what_was_refused_or_is_empty_is_set_aside(tmp_path):
    def plan(prompt, before):
        return {"question 3": "400 too long", "question 5": "blank"}.get(prompt, "ok")

    with llm_server.running(plan) as server:
        send = llm.connect("anthropic", "m", base_url=server.url)
        assert save(questions(8), send, tmp_path) == (6, 2)
        aside = read(tmp_path / "out.rejected.jsonl")
        assert aside[0]["reason"] == "400: too long"
        assert [row["prompt"] for row in aside] == ["question 3", "question 5"]
        assert save(questions(8), send, tmp_path) == (6, 2)  # and is not asked for again
        assert set(server.asked.values()) == {1}


def test_the_requests_under_way_are_bounded(tmp_path):
    with llm_server.running(work=0.02) as server:
        send = llm.connect("openai", "m", base_url=server.url + "/v1")
        run(questions(60), send, tmp_path, Limits(concurrency=3))
        assert server.peak == 3


def test_requests_a_minute(tmp_path):
    with llm_server.running() as server:
        send = llm.connect("openai", "m", base_url=server.url + "/v1")
        run(questions(31), send, tmp_path, Limits(requests_per_minute=3000))
        assert server.times[-1] - server.times[0] >= 30 * 0.02 * 0.9


def test_a_wrong_address_stops_the_run_with_one_sentence(tmp_path):
    with llm_server.running() as server:
        gone = server.url
    send = llm.connect("openai", "m", base_url=gone)
    with pytest.raises(InputError, match=r"10 requests in a row have no reply .*refused"):
        run(questions(1000), send, tmp_path, Limits(retries=1, back_off=0.001))


def test_an_unknown_model_stops_the_run_at_once(tmp_path):
    with llm_server.running(model="other") as server:
        send = llm.connect("openai", "m", base_url=server.url + "/v1")
        with pytest.raises(InputError, match="does not know the model 'm'"):
            run(questions(1000), send, tmp_path)
        assert len(server.bodies) <= 2 * QUICK.concurrency


def test_a_key_is_in_no_file_and_no_word(tmp_path, caplog, capfd):
    """Of a server that repeats it in its errors, and of one that wants another."""

    def plan(prompt, before):
        return f"400 {KEY}" if prompt.endswith("7") else "ok" if before else f"500 {KEY}"

    with caplog.at_level("DEBUG"):
        with llm_server.running(plan, key=KEY) as server:
            send = llm.connect("openai", "m", base_url=server.url + "/v1")
            assert save(questions(20), send, tmp_path) == (18, 2)
        with llm_server.running(plan, key="another") as server:
            send = llm.connect("openai", "m", base_url=server.url + "/v1")
            message = r"does not accept the key in OPENAI_API_KEY \(401: invalid key .*\[key\]"
            with pytest.raises(InputError, match=message) as caught:
                save(questions(40), send, tmp_path)
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert "[key]" in read(tmp_path / "out.rejected.jsonl")[0]["reason"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 3
    for path in files:
        assert KEY.encode() not in path.read_bytes()
    assert "[key]" in caplog.text
    assert KEY not in caplog.text + "".join(capfd.readouterr())


# --- killed and interrupted

CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import request_cases
from fgrlhf_jax.feedback.llm import client as llm
send = llm.connect("openai", "m", base_url=sys.argv[1] + "/v1", timeout=10)
request_cases.save(request_cases.questions(int(sys.argv[4])), send, Path(sys.argv[2]))
"""


def child(server, folder: Path, count: int) -> subprocess.Popen:
    here = str(Path(request_cases.__file__).parent)
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, server.url, str(folder), here, str(count)],
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
def test_killed_five_times(tmp_path):
    count, rng = 300, random.Random(4)
    requests = questions(count)

    def plan(prompt, before):
        what = llm_server.shaky(0.2)(prompt, before)
        return "blank" if what == "ok" and prompt.endswith("7") else what

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    with llm_server.running(plan, work=0.004) as server:
        send = llm.connect("openai", "m", base_url=server.url + "/v1", timeout=10)
        save(requests, send, whole)

    with llm_server.running(plan, work=0.004) as server:
        places = []
        for _ in range(5):
            started = child(server, killed, count)
            until = sum(server.delivered.values()) + rng.randint(5, 30)
            while sum(server.delivered.values()) < until:
                assert started.poll() is None, started.stderr.read()
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.01))
            started.kill()
            started.communicate()
            assert started.returncode == -signal.SIGKILL
            there = in_cache(killed, requests)
            places.append({prompt: server.asked[prompt] for prompt in there})
            written = (killed / "out.jsonl").read_bytes()
            assert (whole / "out.jsonl").read_bytes().startswith(written)
        last = child(server, killed, count)
        _, error = last.communicate()
        assert last.returncode == 0, error
        for asked in places:  # what was there at a kill was never asked for again
            assert all(server.asked[prompt] == before for prompt, before in asked.items())
        # What the kernel had and the program had not yet: at most what was under way.
        assert sum(server.delivered.values()) <= count + 5 * Limits().concurrency
        assert len(places[0]) < len(places[-1]) < count
    for name in ("out.jsonl", "out.rejected.jsonl"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert len(read(whole / "out.rejected.jsonl")) == 30


INTERRUPTED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import request_cases
from fgrlhf_jax.feedback.llm import client as llm
from launch.shared import cli
def main(config):
    send = llm.connect("openai", "m", base_url=url + "/v1", timeout=60)
    request_cases.save(request_cases.questions(20), send, folder)
url, folder = sys.argv[1], Path(sys.argv[2])
del sys.argv[1:]
cli.command(main, "configs/generate.py", "")
"""


@pytest.mark.slow
def test_interrupted(tmp_path):
    """While all threads wait for a server that says nothing."""

    def plan(prompt, before):
        return "ok" if prompt in ("question 0", "question 2") else "timeout"

    with llm_server.running(plan, stall=60) as server:
        here = str(Path(request_cases.__file__).parent)
        started = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED, server.url, str(tmp_path), here],
            stderr=subprocess.PIPE,
        )
        while server.now < Limits().concurrency:
            assert started.poll() is None, started.stderr.read()
            time.sleep(0.01)
        asked = time.monotonic()
        started.send_signal(signal.SIGINT)
        try:
            _, error = started.communicate(timeout=50)
        finally:
            started.kill()
        assert time.monotonic() - asked < 25  # the server is silent for 60
    assert started.returncode == 130
    assert error.decode().strip() == "interrupted; run the same command to go on"
    assert [row["prompt"] for row in read(tmp_path / "out.jsonl")] == ["question 0"]
    assert in_cache(tmp_path, questions(20)) == {"question 0", "question 2"}


def test_interrupted_just_before_it_waits(tmp_path):
    """Python then knows of the Ctrl-C, but nothing wakes its main thread."""
    ended = threading.Event()

    def plan(prompt, before):
        time.sleep(0.2)  # the main thread waits by now
        _thread.interrupt_main()  # marks the signal as there, and wakes nobody
        ended.wait(20)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        save(questions(1), Counting(plan), tmp_path)
    assert time.monotonic() - began < 15
    ended.set()


# --- what stays without an answer


def test_a_row_without_an_answer_does_not_stop_the_others(tmp_path):
    def plan(prompt, before):
        bad = prompt in ("question 4", "question 7") and not healed
        return Transient("500: broken") if bad else None

    healed = False
    send = Counting(plan)
    says_so = (
        r"2 of 20 requests have no reply after 3 tries each \(500: broken\).*raise timeout"
    )
    limits = Limits(retries=2, back_off=0.001)
    with pytest.raises(InputError, match=says_so):
        save(questions(20), send, tmp_path, limits)
    assert len(read(tmp_path / "out.jsonl")) == 4
    assert len(in_cache(tmp_path, questions(20))) == 18
    assert len(send.asked) == 18 + 2 * 3
    healed, before = True, len(send.asked)
    assert save(questions(20), send, tmp_path, limits) == (20, 0)
    assert sorted(send.asked[before:]) == ["question 4", "question 7"]


def test_reasons_are_counted(tmp_path):
    reasons = ["a", "a", "b", "c", "c", "c", "d"]
    faults = {f"question {n}": Transient(reason) for n, reason in enumerate(reasons)}
    send = Counting(lambda prompt, before: faults[prompt])
    with pytest.raises(InputError, match=r"7 of 7 .*1 tries each \(3 × c; 2 × a; 1 × b\)"):
        run(questions(7), send, tmp_path, Limits(retries=0, concurrency=1))


def test_each_fault_is_logged_once(tmp_path, caplog):
    send = Counting(lambda prompt, before: None if before else Transient("503: busy"))
    run(questions(9), send, tmp_path)
    assert caplog.messages == ["503: busy; trying again"]


def test_a_fault_of_the_programs_own_is_not_hidden(tmp_path):
    send = Counting(lambda prompt, before: ZeroDivisionError("bug"))
    with pytest.raises(ZeroDivisionError):
        run(questions(20), send, tmp_path)
    assert len(send.asked) <= 2 * QUICK.concurrency


def test_nothing_to_ask(tmp_path):
    assert run([], says, tmp_path) == []
    assert save([], says, tmp_path) == (0, 0)


def test_answers_come_as_soon_as_all_before_them_are_there(tmp_path):
    gates = {n: threading.Event() for n in range(3)}

    def send(request):
        assert gates[int(request.prompt[-1])].wait(20)
        return says(request)

    replies = collect_replies(
        questions(3), send, cache=tmp_path / "c", identity=IDENTITY, limits=QUICK
    )
    gates[0].set()
    assert next(replies) == says(Request("question 0"))
    gates[2].set()
    gates[1].set()
    assert len(list(replies)) == 2


def test_one_who_stops_reading_stops_the_asking(tmp_path):
    send = Counting()
    replies = collect_replies(
        questions(5000), send, cache=tmp_path / "c", identity=IDENTITY, limits=QUICK
    )
    next(replies)
    replies.close()
    count = len(send.asked)
    time.sleep(0.05)
    assert len(send.asked) == count < 5000
    assert not [t for t in threading.enumerate() if t.daemon and "work" in t.name]


def test_progress_is_over_what_is_still_to_be_asked(tmp_path):
    totals = []

    def progress(items):
        totals.append(len(items))
        yield from items

    run(questions(3), says, tmp_path, progress=progress)
    run(questions(10), says, tmp_path, progress=progress)
    run(questions(10), says, tmp_path, progress=progress)
    assert totals == [3, 7]


def test_without_tenacity(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tenacity", None)
    with pytest.raises(InputError, match=r"pip install 'fgrlhf_jax\[collect\]'"):
        run(questions(1), says, tmp_path)


# --- in batches, for a model on this machine


def test_chunks(tmp_path):
    chunks = []

    def send(requests):
        assert threading.current_thread() is threading.main_thread()
        chunks.append([int(request.prompt.split()[1]) for request in requests])
        return [Refused("too long") if r.prompt == "question 5" else says(r) for r in requests]

    usage, requests = Usage(), [*questions(11), *questions(2)]
    replies = run(requests, send, tmp_path, usage=usage, batch_size=4)
    assert chunks == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    expected = [says(request) for request in requests]
    expected[5] = Rejected("too long")
    assert replies == expected
    assert (usage.requests, usage.tokens) == (11, 50)
    run(requests, send, tmp_path, batch_size=4)
    assert chunks[3:] == [[5]]


def test_chunks_end_at_a_cap(tmp_path):
    sizes = []

    def send(requests):
        sizes.append(len(requests))
        return [says(request) for request in requests]

    with pytest.raises(InputError, match="max_requests=7"):
        save(questions(9), send, tmp_path, Limits(max_requests=7), batch_size=4)
    assert sizes == [4, 3]
    assert save(questions(9), send, tmp_path, Limits(max_requests=7), batch_size=4) == (9, 0)
    assert sizes == [4, 3, 2]
