"""Many requests: every one answered, in order, asked once, whatever happens on the way."""

import contextlib
import errno
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import llm_server
import pytest
from llm_server import KEY

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback import ask, attempts, durable, llm
from fgrlhf_jax.feedback.ask import Limits, Rejected, Spent
from fgrlhf_jax.feedback.llm import Refused, Reply, Request, Transient

QUICK = Limits(back_off=0.001, longest_wait=0.01)
IDENTITY = {"provider": "openai", "model": "m", "base_url": ""}


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)


def questions(count: int) -> list[Request]:
    return [Request(f"question {n}") for n in range(count)]


def says(request: Request) -> Reply:
    return Reply(llm_server.echo(request.prompt), "end", 2, 3)


def run(requests, send, folder: Path, limits: Limits = QUICK, identity=IDENTITY, **options):
    return list(
        ask.answers(
            requests,
            send,
            cache=folder / "cache.sqlite",
            identity=identity,
            limits=limits,
            **options,
        )
    )


def save(requests, send, folder: Path, limits: Limits = QUICK, **options) -> tuple[int, int]:
    """As a command does it: a row a request, what was refused or is empty set aside."""

    def rows(done):
        replies = ask.answers(
            requests[done:],
            send,
            cache=folder / "cache.sqlite",
            identity=IDENTITY,
            limits=limits,
            **options,
        )
        for request, reply in zip(requests[done:], replies, strict=True):
            if isinstance(reply, Rejected):
                yield {"prompt": request.prompt, "reason": reply.reason}, False
            else:
                yield {"prompt": request.prompt, "text": reply.text}, reply.text != ""

    digests = [ask.digest(IDENTITY, request) for request in requests]
    return durable.append_rows(folder / "out.jsonl", digests, rows)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


class Counting:
    """A model that counts; ``plan`` gives what to raise, if anything."""

    def __init__(self, plan=lambda prompt, before: None):
        self.plan, self.asked, self.lock = plan, [], threading.Lock()

    def __call__(self, request: Request) -> Reply:
        with self.lock:
            before = self.asked.count(request.prompt)
            self.asked.append(request.prompt)
        if fault := self.plan(request.prompt, before):
            raise fault
        return says(request)


# --- through the wire


@pytest.mark.slow
def test_a_thousand_rows_of_which_a_fifth_meet_faults(tmp_path):
    """Every other one by the other protocol."""
    requests, spent = questions(1000), Spent()
    with llm_server.running(llm_server.shaky(0.2, slow=0.05)) as server:
        ways = [
            llm.connect(provider, "m", base_url=server.url + "/v1", timeout=30)
            for provider in llm.PROVIDERS
        ]

        def send(request):
            return ways[int(request.prompt.split()[1]) % 2](request)

        counts = save(requests, send, tmp_path, spent=spent)
        asked, delivered = server.asked, server.delivered
        assert server.peak <= 8
        assert {path.split("/")[2] for path in server.paths} == {"messages", "chat"}
    assert counts == (1000, 0)
    rows = read(tmp_path / "out.jsonl")
    assert [row["prompt"] for row in rows] == [request.prompt for request in requests]
    assert all(row["text"] == llm_server.echo(row["prompt"]) for row in rows)
    assert set(delivered.values()) == {1}  # no answer that arrived was asked for again
    assert len(delivered) == 1000
    assert spent.requests == sum(asked.values())
    assert spent.retries == spent.requests - 1000
    assert 0.15 * 1000 < spent.retries < 0.35 * 1000


@pytest.mark.parametrize("chunk", [0, 4])
def test_where_all_are_refused_nothing_is_set_aside(tmp_path, chunk):
    def send(asked):
        if chunk:
            return [Refused("400: too warm")] * len(asked)
        raise Refused("400: too warm")

    with pytest.raises(InputError, match=r"10 requests in a row are refused \(400: too warm\)"):
        save(questions(30), send, tmp_path, chunk=chunk)
    assert read(tmp_path / "out.jsonl") == []
    assert not (tmp_path / "out.rejected.jsonl").exists() or not read(
        tmp_path / "out.rejected.jsonl"
    )
    assert save(questions(30), send, tmp_path, Limits(max_refusals=0), chunk=chunk) == (0, 30)


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
    with pytest.raises(InputError, match=r"10 requests in a row have no answer .*refused"):
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
import ask_test
from fgrlhf_jax.feedback import llm
send = llm.connect("openai", "m", base_url=sys.argv[1] + "/v1", timeout=10)
ask_test.save(ask_test.questions(int(sys.argv[4])), send, Path(sys.argv[2]))
"""


def child(server, folder: Path, count: int) -> subprocess.Popen:
    here = str(Path(__file__).parent)
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, server.url, str(folder), here, str(count)],
        stderr=subprocess.PIPE,
    )


def in_cache(folder: Path, requests) -> set[str]:
    """Prompts whose answers are there."""
    with contextlib.closing(durable.Cache(folder / "cache.sqlite")) as stored:
        return {r.prompt for r in requests if ask.digest(IDENTITY, r) in stored}


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
import ask_test
from fgrlhf_jax.feedback import llm
from launch import cli
def main(config):
    send = llm.connect("openai", "m", base_url=url + "/v1", timeout=60)
    ask_test.save(ask_test.questions(20), send, folder)
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
        here = str(Path(__file__).parent)
        started = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED, server.url, str(tmp_path), here],
            stderr=subprocess.PIPE,
        )
        while server.now < Limits().concurrency:
            assert started.poll() is None, started.stderr.read()
            time.sleep(0.01)
        asked = time.monotonic()
        started.send_signal(signal.SIGINT)
        _, error = started.communicate(timeout=50)
        assert time.monotonic() - asked < 25  # the server is silent for 60
    assert started.returncode == 130
    assert error.decode().strip() == "interrupted; run the same command to go on"
    assert [row["prompt"] for row in read(tmp_path / "out.jsonl")] == ["question 0"]
    assert in_cache(tmp_path, questions(20)) == {"question 0", "question 2"}


# --- the cache


def test_a_second_run_asks_nothing(tmp_path):
    send, spent = Counting(), Spent()
    first = run(questions(20), send, tmp_path)
    assert run(questions(20), send, tmp_path, spent=spent) == first
    assert len(send.asked) == 20
    assert spent == Spent(cached=20)
    assert first == [says(request) for request in questions(20)]


def test_the_same_request_twice_is_asked_once(tmp_path):
    send, spent = Counting(), Spent()
    requests = questions(5) * 3
    assert run(requests, send, tmp_path, spent=spent) == [says(r) for r in requests]
    assert len(send.asked) == 5
    assert spent.requests == 5


@pytest.mark.parametrize(
    "change",
    [{"prompt": "x"}, {"system": "x"}, {"max_tokens": 9}, {"temperature": 1.0}],
)
def test_whatever_determines_an_answer_is_in_its_key(change):
    request = Request("a", "b", 1, 0.0)
    other = Request(**{**vars(request), **change})
    assert ask.digest(IDENTITY, request) != ask.digest(IDENTITY, other)
    for name in IDENTITY:
        assert ask.digest(IDENTITY, request) != ask.digest({**IDENTITY, name: "x"}, request)
    assert ask.digest(IDENTITY, request) == ask.digest(
        dict(reversed(IDENTITY.items())), request
    )


def test_a_reply_comes_back_from_the_disk_as_it_was(tmp_path):
    reply = Reply("ü🙂\x00\r\n\u2028 'quoted'", "length", 5, 0)
    for _ in range(2):
        assert run([Request("a\ud83d")], lambda request: reply, tmp_path) == [reply]


def test_a_cache_of_another_version(tmp_path):
    run(questions(1), says, tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "cache.sqlite")) as connection:
        connection.execute("PRAGMA user_version=2")
    for call in (run, save):
        with pytest.raises(InputError, match=r"no cache of this version .*is 2, not 1"):
            call(questions(1), says, tmp_path)


def test_a_database_of_something_else(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "cache.sqlite")) as connection:
        connection.execute("CREATE TABLE t (x)")
    with pytest.raises(InputError, match="no cache of this version"):
        run(questions(1), says, tmp_path)


@pytest.mark.parametrize("content", [b"not a database " * 100, None])
def test_a_cache_that_is_none(tmp_path, content):
    path = tmp_path / "cache.sqlite"
    path.write_bytes(content) if content else path.mkdir()
    with pytest.raises(InputError, match=r"cache.*cannot be used"):
        run(questions(1), says, tmp_path)


def test_two_processes_may_share_a_cache(tmp_path):
    def at_once():
        results.append(run(questions(30), says, tmp_path))

    results: list = []
    threads = [threading.Thread(target=at_once) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[says(request) for request in questions(30)]] * 4


def test_an_estimate(tmp_path):
    requests = [Request("x" * 40, "y" * 8, 100), *questions(3), *questions(3)]
    cache = tmp_path / "cache.sqlite"
    assert ask.estimate(requests, cache=cache, identity=IDENTITY) == (4, 12 + 9, 100 + 3072)
    assert not cache.exists()
    run(questions(2), says, tmp_path)
    assert ask.estimate(requests, cache=cache, identity=IDENTITY) == (2, 12 + 3, 1124)
    other = IDENTITY | {"model": "n"}
    assert ask.estimate(requests, cache=cache, identity=other).requests == 4


# --- limits


@pytest.mark.parametrize(
    "limits", [{"max_requests": 7}, {"max_tokens": 33}], ids=["requests", "tokens"]
)
def test_a_cap_stops_and_a_later_run_goes_on(tmp_path, limits):
    send = Counting()
    capped = Limits(concurrency=1, **limits)
    for run_number in range(1, 4):
        spent = Spent()
        with pytest.raises(InputError, match=r"stopped at max_\w+=\d+ after 7 requests") as e:
            save(questions(22), send, tmp_path, capped, spent=spent)
        assert "14 tokens read and 21 written" in str(e.value)
        assert spent.requests == 7
        assert len(read(tmp_path / "out.jsonl")) == 7 * run_number
    assert save(questions(22), send, tmp_path, capped) == (22, 0)
    assert sorted(send.asked) == sorted(request.prompt for request in questions(22))


def test_what_is_under_way_at_a_cap_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(attempts, "GRACE", 0.0)

    def slow(request):
        time.sleep(0.1 + 0.1 * int(request.prompt.split()[1]))
        return says(request)

    spent = Spent()
    with pytest.raises(InputError, match="max_tokens=5"):
        run(questions(20), slow, tmp_path, Limits(concurrency=4, max_tokens=5), spent=spent)
    assert spent.requests == 4
    assert spent.tokens == 20
    assert len(in_cache(tmp_path, questions(20))) == 4


def test_a_cap_counts_every_attempt(tmp_path):
    send = Counting(lambda prompt, before: Transient("503") if before < 2 else None)
    limits = Limits(concurrency=1, max_requests=7, back_off=0)
    with pytest.raises(InputError, match=r"after 7 requests \(4 of them retries\)"):
        run(questions(5), send, tmp_path, limits)
    assert len(send.asked) == 7


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self):
        self.time, self.starts = 100.0, []

    def now(self):
        return self.time

    def sleep(self, seconds):
        self.time += seconds


def test_attempts_are_spread_over_the_minute():
    clock = Clock()
    pace = attempts.Pace(6, clock.now, clock.sleep)
    starts = []
    for work in (0, 0, 0, 25, 0, 0, 3, 0):
        pace.wait()
        starts.append(clock.time)
        clock.time += work
    assert starts == [100, 110, 120, 130, 155, 165, 175, 185]
    pace.hold(40)
    pace.hold(1)  # does not take the longer pause back
    pace.wait()
    pace.wait()
    assert clock.time == 235


def test_a_pause_holds_those_too_that_have_their_turn():
    clock = Clock()
    pace = attempts.Pace(6, clock.now, clock.sleep)
    pace.wait()

    def hold_once(seconds):
        pace.sleep = clock.sleep
        clock.sleep(seconds / 2)
        pace.hold(60)
        clock.sleep(seconds / 2)

    pace.sleep = hold_once
    pace.wait()
    assert clock.time == 165
    pace.wait()
    assert clock.time == 175  # still spread


def test_who_waits_is_let_go_when_the_run_stops():
    clock = Clock()
    pace = attempts.Pace(6, clock.now, lambda seconds: True)
    pace.hold(1000)
    pace.wait()
    assert clock.time == 100


def test_without_a_rate_nobody_waits():
    clock = Clock()
    pace = attempts.Pace(0, clock.now, clock.sleep)
    for _ in range(100):
        pace.wait()
    assert clock.time == 100


def test_all_wait_for_as_long_as_the_server_asks(tmp_path):
    """Not only the request that met the fault."""
    fault, starts = threading.Event(), {}

    def send(request):
        number = int(request.prompt.split()[1])
        if number == 0 and not fault.is_set():
            starts["fault"] = time.monotonic()
            fault.set()
            raise Transient("429", retry_after=0.4)
        starts[number] = time.monotonic()
        if number == 1:  # under way before the fault, and for a while after it
            assert fault.wait(20)
            time.sleep(0.1)
        return says(request)

    run(questions(6), send, tmp_path, Limits(concurrency=2, back_off=0.001))
    assert all(starts[n] - starts["fault"] >= 0.4 for n in (0, 2, 3, 4, 5))


def test_a_pause_that_is_too_long_to_wait_for(tmp_path):
    send = Counting(lambda prompt, before: Transient("429: daily quota", 7200.0))
    with pytest.raises(InputError, match=r"wants a pause of 7200 s \(429: daily quota\)"):
        run(questions(3), send, tmp_path)


def test_the_waits_grow_and_are_random(monkeypatch):
    stop = threading.Event()
    retrying = attempts._retrying(Limits(back_off=1.0, longest_wait=20.0), stop)

    def waits(attempt, after=None):
        state = type("State", (), {"attempt_number": attempt})()
        fault = Transient("503", after)
        state.outcome = type("Outcome", (), {"exception": lambda self: fault})()
        return [retrying.wait(state) for _ in range(200)]

    for attempt, most in ((1, 1), (2, 2), (3, 4), (4, 8), (6, 20), (60, 20)):
        drawn = waits(attempt)
        assert 0 <= min(drawn) < most / 2 < max(drawn) <= most
        assert len(set(drawn)) > 100
    assert min(waits(1, 30.0)) == 30.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"concurrency": 0},
        {"retries": -1},
        {"max_requests": -1},
        {"requests_per_minute": -1},
        {"max_tokens": -5},
        {"back_off": -1},
        {"longest_wait": -1},
    ],
)
def test_limits_that_make_no_sense(wrong):
    (name,) = wrong
    with pytest.raises(InputError, match=f"{name}="):
        Limits(**wrong)


# --- what stays without an answer


def test_a_row_without_an_answer_does_not_stop_the_others(tmp_path):
    def plan(prompt, before):
        bad = prompt in ("question 4", "question 7") and not healed
        return Transient("500: broken") if bad else None

    healed = False
    send = Counting(plan)
    says_so = r"2 of 20 requests have no answer after 3 tries each \(500: broken\)"
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
        run(questions(7), send, tmp_path, Limits(retries=0))


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

    replies = ask.answers(
        questions(3), send, cache=tmp_path / "c", identity=IDENTITY, limits=QUICK
    )
    gates[0].set()
    assert next(replies) == says(Request("question 0"))
    gates[2].set()
    gates[1].set()
    assert len(list(replies)) == 2


def test_one_who_stops_reading_stops_the_asking(tmp_path):
    send = Counting()
    replies = ask.answers(
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

    spent, requests = Spent(), [*questions(11), *questions(2)]
    replies = run(requests, send, tmp_path, spent=spent, chunk=4)
    assert chunks == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    expected = [says(request) for request in requests]
    expected[5] = Rejected("too long")
    assert replies == expected
    assert (spent.requests, spent.tokens) == (11, 50)
    run(requests, send, tmp_path, chunk=4)
    assert chunks[3:] == [[5]]


def test_chunks_end_at_a_cap(tmp_path):
    sizes = []

    def send(requests):
        sizes.append(len(requests))
        return [says(request) for request in requests]

    with pytest.raises(InputError, match="max_requests=7"):
        save(questions(9), send, tmp_path, Limits(max_requests=7), chunk=4)
    assert sizes == [4, 3]
    assert save(questions(9), send, tmp_path, Limits(max_requests=7), chunk=4) == (9, 0)
    assert sizes == [4, 3, 2]


# --- the file of rows


def test_a_torn_last_line_is_cut(tmp_path):
    save(questions(9), says, tmp_path)
    path = tmp_path / "out.jsonl"
    whole = path.read_bytes()
    for cut in (1, 5, len(whole) // 2, len(whole)):
        path.write_bytes(whole[:-cut])
        assert save(questions(9), Counting(lambda *a: AssertionError()), tmp_path) == (9, 0)
        assert path.read_bytes() == whole


def test_rows_that_are_there_are_not_asked_for_even_without_a_cache(tmp_path):
    save(questions(5), says, tmp_path)
    for path in tmp_path.glob("cache*"):
        path.unlink()
    send = Counting()
    assert save(questions(8), send, tmp_path) == (8, 0)
    assert sorted(send.asked) == ["question 5", "question 6", "question 7"]


@pytest.mark.parametrize(
    ("now", "line"),
    [
        ([*questions(3), Request("other"), *questions(9)[4:]], 4),
        (questions(9)[1:], 1),
        (questions(5), 6),
        ([], 1),
    ],
)
def test_an_input_that_changed(tmp_path, now, line):
    save(questions(9), says, tmp_path)
    before = (tmp_path / "out.jsonl").read_bytes()
    message = rf"out.jsonl:{line}: answers another request than row {line} .*has changed"
    with pytest.raises(InputError, match=message):
        save(now, says, tmp_path)
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_an_input_that_changed_where_a_row_was_set_aside(tmp_path):
    send = Counting(lambda prompt, before: Refused("no") if prompt.endswith("2") else None)
    assert save(questions(4), send, tmp_path) == (3, 1)
    changed = questions(4)
    changed[2] = Request("other")
    with pytest.raises(InputError, match=r"out.jsonl:3: answers another .*row 3"):
        save(changed, send, tmp_path)
    changed = [*questions(2), questions(4)[3]]
    with pytest.raises(InputError, match=r"out.rejected.jsonl:1: answers another .*row 4"):
        save(changed, send, tmp_path)


@pytest.mark.parametrize("line", ['{"prompt": "a"}', "[1]", "text", '{"request_key": 3}'])
def test_a_file_of_somebody_else(tmp_path, line):
    path = tmp_path / "out.jsonl"
    path.write_text(f"{line}\nlast")
    with pytest.raises(InputError, match=r"out.jsonl:1: "):
        save(questions(3), says, tmp_path)
    assert path.read_text() == f"{line}\nlast"


def test_another_process_is_writing(tmp_path):
    save(questions(1), says, tmp_path)
    code = (
        "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX);"
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out.jsonl")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(InputError, match="another process is writing it"):
            save(questions(2), says, tmp_path)
        other.communicate()
    assert save(questions(2), says, tmp_path) == (2, 0)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"out.jsonl: cannot be written \(No such file"):
        save(questions(1), says, tmp_path / "nowhere")


# --- a full disk


def full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_under_the_rows(tmp_path, monkeypatch):
    send, real, calls = Counting(), os.fsync, []

    def fsync(number):
        calls.append(number)
        if len(calls) == 6:
            full()
        real(number)

    monkeypatch.setattr(durable.os, "fsync", fsync)
    with pytest.raises(InputError, match=r"out.jsonl: cannot be written \(No space left"):
        save(questions(20), send, tmp_path)
    assert len(read(tmp_path / "out.jsonl")) == 5
    there = in_cache(tmp_path, questions(20))
    before = len(send.asked)
    assert save(questions(20), send, tmp_path) == (20, 0)
    assert not there & set(send.asked[before:])
    assert len(there) == before


def test_a_line_of_which_only_a_part_fits(tmp_path):
    class Small:
        """A file on a disk with room for ten bytes."""

        def __init__(self, file):
            self.file, self.room = file, 10

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            if not self.room:
                full()
            count = self.file.write(data[: self.room])
            self.room -= count
            return count

    path = tmp_path / "rows"
    path.write_bytes(b"before\n")
    with path.open("ab+", buffering=0) as file:
        with pytest.raises(InputError, match="No space left"):
            durable._append(Small(file), path, b"0123456789abcdef\n")
        assert path.read_bytes() == b"before\n"
        durable._append(file, path, b"after\n")
    assert path.read_bytes() == b"before\nafter\n"


def test_a_full_disk_under_the_cache(tmp_path, monkeypatch):
    """SQLite's own limit on pages says what a full disk says."""
    prepare = durable.Cache._prepare

    def small(self):
        version = prepare(self)
        self.connection.execute("PRAGMA max_page_count=8")
        return version

    def long(request):
        return Reply(request.prompt + "x" * 1500, "end", 1, 1)

    with monkeypatch.context() as patch:
        patch.setattr(durable.Cache, "_prepare", small)
        message = r"cache .*cannot be used \(database or disk is full\); free some space"
        with pytest.raises(InputError, match=message):
            save(questions(50), long, tmp_path)
    there = in_cache(tmp_path, questions(50))
    assert 2 <= len(there) < 20
    send = Counting()
    assert save(questions(50), send, tmp_path) == (50, 0)
    assert not there & set(send.asked)
    rows = read(tmp_path / "out.jsonl")
    assert sum(row["text"].endswith("xxx") for row in rows) == len(there)
