"""How hard a server is asked, and what may be usage."""

import threading
import time

import pytest
from request_cases import Counting, in_cache, questions, read, run, save, says

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.llm import requests as llm_requests
from fgrlhf_jax.feedback.llm.client import Transient
from fgrlhf_jax.feedback.llm.requests import Limits, Usage


@pytest.mark.parametrize(
    "limits", [{"max_requests": 7}, {"max_tokens": 33}], ids=["requests", "tokens"]
)
def test_a_cap_stops_and_a_later_run_goes_on(tmp_path, limits):
    send = Counting()
    capped = Limits(concurrency=1, **limits)
    for run_number in range(1, 4):
        usage = Usage()
        with pytest.raises(InputError, match=r"stopped at max_\w+=\d+ after 7 requests") as e:
            save(questions(22), send, tmp_path, capped, usage=usage)
        assert "14 tokens read and 21 written" in str(e.value)
        assert usage.requests == 7
        assert len(read(tmp_path / "out.jsonl")) == 7 * run_number
    assert save(questions(22), send, tmp_path, capped) == (22, 0)
    assert sorted(send.asked) == sorted(request.prompt for request in questions(22))


def test_what_is_under_way_at_a_cap_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(llm_requests, "GRACE", 0.0)

    def slow(request):
        time.sleep(0.1 + 0.1 * int(request.prompt.split()[1]))
        return says(request)

    usage = Usage()
    with pytest.raises(InputError, match="max_tokens=5"):
        run(questions(20), slow, tmp_path, Limits(concurrency=4, max_tokens=5), usage=usage)
    assert usage.requests == 4
    assert usage.tokens == 20
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
    pace = llm_requests.RateLimiter(6, clock.now, clock.sleep)
    starts = []
    for work in (0, 0, 0, 25, 0, 0, 3, 0):
        pace.wait()
        starts.append(clock.time)
        clock.time += work
    assert starts == [100, 110, 120, 130, 155, 165, 175, 185]
    pace.pause(40)
    pace.pause(1)  # does not take the longer pause back
    pace.wait()
    pace.wait()
    assert clock.time == 235


def test_a_pause_holds_those_too_that_have_their_turn():
    clock = Clock()
    pace = llm_requests.RateLimiter(6, clock.now, clock.sleep)
    pace.wait()

    def hold_once(seconds):
        pace.sleep = clock.sleep
        clock.sleep(seconds / 2)
        pace.pause(60)
        clock.sleep(seconds / 2)

    pace.sleep = hold_once
    pace.wait()
    assert clock.time == 165
    pace.wait()
    assert clock.time == 175  # still spread


def test_who_waits_is_let_go_when_the_run_stops():
    clock = Clock()
    pace = llm_requests.RateLimiter(6, clock.now, lambda seconds: True)
    pace.pause(1000)
    pace.wait()
    assert clock.time == 100


def test_without_a_rate_nobody_waits():
    clock = Clock()
    pace = llm_requests.RateLimiter(0, clock.now, clock.sleep)
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
    retrying = llm_requests._retrying(Limits(back_off=1.0, longest_wait=20.0), stop)

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
