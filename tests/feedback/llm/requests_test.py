"""Many requests: each is answered, in order, once, within the limits, whatever happens."""

import _thread
import sys
import threading
import time
import traceback

import llm_server
import pytest
from llm_server import KEY
from request_cases import (
    QUICK,
    FakeModel,
    cached_prompts,
    collect,
    echo,
    number_of,
    questions,
    read,
    save,
)

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.llm import requests as llm_requests
from fgrlhf_jax.feedback.llm.client import PROVIDERS, Refused, Request, Transient, connect
from fgrlhf_jax.feedback.llm.requests import Limits, RateLimiter, Rejected, Usage


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)


def connected(server, provider: str = "openai", timeout: float = 30.0):
    return connect(provider, "m", base_url=server.url + "/v1", timeout=timeout)


# --- through the wire


@pytest.mark.slow
def test_rows_of_which_a_fifth_meet_faults(tmp_path):
    """Every other one by the other protocol."""
    count, usage = 200, Usage()
    requests = questions(count)
    with llm_server.running(llm_server.shaky(0.2, slow=0.05)) as server:
        senders = [connected(server, provider) for provider in PROVIDERS]
        counts = save(requests, lambda r: senders[number_of(r) % 2](r), tmp_path, usage=usage)
        assert server.peak <= 8
        assert {path.split("/")[2] for path in server.paths} == {"messages", "chat"}
    assert counts == (count, 0)
    rows = read(tmp_path / "out.jsonl")
    assert [row["prompt"] for row in rows] == [request.prompt for request in requests]
    assert all(row["text"] == llm_server.echo(row["prompt"]) for row in rows)
    assert set(server.delivered.values()) == {1}  # no reply that arrived was asked for again
    assert len(server.delivered) == count
    assert usage.requests == sum(server.asked.values())
    assert usage.retries == usage.requests - count
    assert 0.1 * count < usage.retries < 0.4 * count


def test_a_refused_or_empty_reply_is_rejected(tmp_path):
    def plan(prompt, before):
        return {"question 3": "400 too long", "question 5": "blank"}.get(prompt, "ok")

    with llm_server.running(plan) as server:
        for _ in range(2):  # and is not asked for again
            assert save(questions(8), connected(server, "anthropic"), tmp_path) == (6, 2)
        assert set(server.asked.values()) == {1}
    rejected = read(tmp_path / "out.rejected.jsonl")
    assert rejected[0]["reason"] == "400: too long"
    assert [row["prompt"] for row in rejected] == ["question 3", "question 5"]


def test_requests_in_flight_and_per_minute_are_bounded(tmp_path):
    with llm_server.running(work=0.02) as server:
        list(collect(questions(24), connected(server), tmp_path / "1", Limits(concurrency=3)))
        assert server.peak == 3
    with llm_server.running() as server:
        limits = Limits(requests_per_minute=3000)
        list(collect(questions(11), connected(server), tmp_path / "2", limits))
        assert server.times[-1] - server.times[0] >= 10 * 0.02 * 0.9


def test_what_every_request_would_meet_stops_the_run(tmp_path):
    with llm_server.running(model="other") as server:
        with pytest.raises(InputError, match="does not know the model 'm'"):
            list(collect(questions(1000), connected(server), tmp_path))
        assert len(server.bodies) <= 2 * QUICK.concurrency
    limits = Limits(retries=1, back_off=0.001)
    with pytest.raises(InputError, match=r"10 requests in a row have no reply .*refused"):
        list(collect(questions(1000), connected(server), tmp_path, limits))  # nobody is there


def test_a_key_is_in_no_file_and_no_word(tmp_path, caplog, capfd):
    """Of a server that repeats it in its errors, and of one that wants another."""

    def plan(prompt, before):
        return f"400 {KEY}" if prompt.endswith("7") else "ok" if before else f"500 {KEY}"

    with caplog.at_level("DEBUG"):
        with llm_server.running(plan, key=KEY) as server:
            assert save(questions(20), connected(server), tmp_path) == (18, 2)
        with llm_server.running(plan, key="another") as server:
            message = r"does not accept the key in OPENAI_API_KEY \(401: invalid key .*\[key\]"
            with pytest.raises(InputError, match=message) as caught:
                save(questions(40), connected(server), tmp_path)
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert "[key]" in read(tmp_path / "out.rejected.jsonl")[0]["reason"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 3
    for path in files:
        assert KEY.encode() not in path.read_bytes()
    assert "[key]" in caplog.text
    assert KEY not in caplog.text + "".join(capfd.readouterr())


# --- refused


@pytest.mark.parametrize("batch_size", [0, 4])
def test_where_all_are_refused_nothing_is_rejected(tmp_path, batch_size):
    def send(requests):
        if batch_size:
            return [Refused("400: too warm")] * len(requests)
        raise Refused("400: too warm")

    with pytest.raises(InputError, match=r"10 requests in a row are refused \(400: too warm\)"):
        save(questions(30), send, tmp_path, batch_size=batch_size)
    assert read(tmp_path / "out.jsonl") == []
    assert (tmp_path / "out.rejected.jsonl").read_bytes() == b""
    limits = Limits(max_refusals=0)
    assert save(questions(30), send, tmp_path, limits, batch_size=batch_size) == (0, 30)


def test_refusals_with_replies_between_them_are_rejected(tmp_path):
    """And those before a cap are not sent again."""
    send = FakeModel(lambda prompt, _: None if prompt.endswith("0") else Refused("too long"))
    with pytest.raises(InputError, match="max_requests=37"):
        save(questions(40), send, tmp_path, Limits(concurrency=1, max_requests=37))
    assert save(questions(40), send, tmp_path, Limits(concurrency=1)) == (4, 36)
    assert [row["prompt"] for row in read(tmp_path / "out.rejected.jsonl")] == [
        request.prompt for n, request in enumerate(questions(40)) if n % 10
    ]
    assert len(send.prompts) == 40


# --- interrupted


def test_interrupted_just_before_it_waits(tmp_path, monkeypatch):
    """Python then knows of the Ctrl-C, but nothing wakes its main thread."""
    monkeypatch.setattr(llm_requests, "GRACE", 0.01)
    ended = threading.Event()

    def plan(prompt, before):
        time.sleep(0.2)  # the main thread waits by now
        _thread.interrupt_main()  # marks the signal as there, and wakes nobody
        ended.wait(20)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        save(questions(1), FakeModel(plan), tmp_path)
    assert time.monotonic() - began < 15
    ended.set()


# --- faults


def test_a_row_without_a_reply_does_not_stop_the_others(tmp_path, caplog):
    faults = {
        f"question {n}": Transient(reason) for n, reason in {4: "500", 7: "a", 8: "a"}.items()
    }
    send = FakeModel(lambda prompt, before: faults.get(prompt))
    limits = Limits(retries=2, back_off=0.001)
    message = r"3 of 20 requests have no reply after 3 tries each \(2 × a; 1 × 500\).*timeout"
    with pytest.raises(InputError, match=message):
        save(questions(20), send, tmp_path, limits)
    assert sorted(caplog.messages) == ["500; trying again", "a; trying again"]  # once
    assert len(read(tmp_path / "out.jsonl")) == 4
    assert len(cached_prompts(tmp_path, questions(20))) == 17
    assert len(send.prompts) == 17 + 3 * 3
    before = len(send.prompts)
    faults.clear()
    assert save(questions(20), send, tmp_path, limits) == (20, 0)
    assert sorted(send.prompts[before:]) == ["question 4", "question 7", "question 8"]


def test_an_error_of_the_program_is_not_hidden(tmp_path, monkeypatch):
    send = FakeModel(lambda prompt, before: ZeroDivisionError("bug"))
    with pytest.raises(ZeroDivisionError):
        list(collect(questions(20), send, tmp_path))
    assert len(send.prompts) <= 2 * QUICK.concurrency
    monkeypatch.setitem(sys.modules, "tenacity", None)
    with pytest.raises(InputError, match=r"pip install 'fgrlhf_jax\[collect\]'"):
        list(collect(questions(1), echo, tmp_path))


# --- order, progress, batches


def test_replies_come_as_soon_as_all_before_them_are_known(tmp_path):
    gates = [threading.Event() for _ in range(3)]

    def send(request):
        assert gates[number_of(request)].wait(20)
        return echo(request)

    replies = collect(questions(3), send, tmp_path)
    gates[0].set()
    assert next(replies) == echo(Request("question 0"))
    gates[2].set()
    gates[1].set()
    assert len(list(replies)) == 2


def test_a_reader_who_stops_stops_the_requests(tmp_path):
    send = FakeModel()
    replies = collect(questions(5000), send, tmp_path)
    next(replies)
    replies.close()
    count = len(send.prompts)
    time.sleep(0.05)
    assert len(send.prompts) == count < 5000
    assert not [t for t in threading.enumerate() if t.daemon and "_work" in t.name]


def test_progress_is_over_what_is_still_to_be_sent(tmp_path):
    totals = []

    def progress(items):
        totals.append(len(items))
        yield from items

    for count in (0, 3, 10, 10):
        replies = list(collect(questions(count), echo, tmp_path, progress=progress))
        assert replies == [echo(request) for request in questions(count)]
    assert totals == [3, 7]


def test_batches_for_a_model_on_this_machine(tmp_path):
    batches = []

    def send(requests):
        assert threading.current_thread() is threading.main_thread()
        batches.append([number_of(request) for request in requests])
        return [Refused("too long") if number_of(r) == 5 else echo(r) for r in requests]

    usage, requests = Usage(), [*questions(11), *questions(2)]
    capped = Limits(max_requests=7)
    with pytest.raises(InputError, match="max_requests=7"):
        save(requests, send, tmp_path, capped, usage=usage, batch_size=4)
    assert (usage.requests, usage.tokens) == (7, 30)
    replies = list(collect(requests, send, tmp_path, usage=usage, batch_size=4))
    assert batches == [[0, 1, 2, 3], [4, 5, 6], [5, 7, 8, 9], [10]]
    expected = [echo(request) for request in requests]
    expected[5] = Rejected("too long")
    assert replies == expected
    assert (usage.requests, usage.tokens) == (12, 50)


# --- limits


@pytest.mark.parametrize("cap", [{"max_requests": 7}, {"max_tokens": 33}], ids=str)
def test_a_cap_stops_and_a_later_run_continues(tmp_path, cap):
    send, capped = FakeModel(), Limits(concurrency=1, **cap)
    for run_number in range(1, 4):
        usage = Usage()
        with pytest.raises(InputError, match=r"stopped at max_\w+=\d+ after 7 requests") as e:
            save(questions(22), send, tmp_path, capped, usage=usage)
        assert "14 tokens read and 21 written" in str(e.value)
        assert usage.requests == 7
        assert len(read(tmp_path / "out.jsonl")) == 7 * run_number
    assert save(questions(22), send, tmp_path, capped) == (22, 0)
    assert sorted(send.prompts) == sorted(request.prompt for request in questions(22))


def test_requests_in_flight_at_a_cap_are_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(llm_requests, "GRACE", 0.0)

    def slow(request):
        time.sleep(0.05 + 0.05 * number_of(request))
        return echo(request)

    usage, limits = Usage(), Limits(concurrency=4, max_tokens=5)
    with pytest.raises(InputError, match="max_tokens=5"):
        list(collect(questions(20), slow, tmp_path, limits, usage=usage))
    assert (usage.requests, usage.tokens) == (4, 20)
    assert len(cached_prompts(tmp_path, questions(20))) == 4


def test_a_cap_counts_every_attempt(tmp_path):
    send = FakeModel(lambda prompt, before: Transient("503") if before < 2 else None)
    limits = Limits(concurrency=1, max_requests=7, back_off=0)
    with pytest.raises(InputError, match=r"after 7 requests \(4 of them retries\)"):
        list(collect(questions(5), send, tmp_path, limits))
    assert len(send.prompts) == 7


class Clock:
    """Time that passes only where somebody sleeps."""

    time = 100.0

    def now(self):
        return self.time

    def sleep(self, seconds):
        self.time += seconds


def test_attempts_are_spread_over_the_minute():
    clock = Clock()
    rate = RateLimiter(6, clock.now, clock.sleep)
    starts = []
    for work in (0, 0, 0, 25, 0, 0, 3, 0):
        rate.wait()
        starts.append(clock.time)
        clock.time += work
    assert starts == [100, 110, 120, 130, 155, 165, 175, 185]
    rate.pause(40)
    rate.pause(1)  # does not shorten the longer pause
    rate.wait()
    rate.wait()
    assert clock.time == 235

    clock = Clock()
    unlimited = RateLimiter(0, clock.now, clock.sleep)
    for _ in range(100):
        unlimited.wait()
    assert clock.time == 100


def test_a_pause_holds_attempts_whose_turn_it_is():
    clock = Clock()
    rate = RateLimiter(6, clock.now, clock.sleep)
    rate.wait()

    def pause_once(seconds):
        rate.sleep = clock.sleep
        clock.sleep(seconds / 2)
        rate.pause(60)
        clock.sleep(seconds / 2)

    rate.sleep = pause_once
    rate.wait()
    assert clock.time == 165
    rate.wait()
    assert clock.time == 175  # still spread

    rate.sleep = lambda seconds: True  # the run stops
    rate.pause(1000)
    rate.wait()
    assert clock.time == 175


def test_all_wait_for_as_long_as_the_server_wants(tmp_path):
    """Not only the request that met the fault."""
    fault, starts = threading.Event(), {}

    def send(request):
        number = number_of(request)
        if number == 0 and not fault.is_set():
            starts["fault"] = time.monotonic()
            fault.set()
            raise Transient("429", retry_after=0.4)
        starts[number] = time.monotonic()
        if number == 1:  # in flight before the fault, and for a while after it
            assert fault.wait(20)
            time.sleep(0.1)
        return echo(request)

    list(collect(questions(6), send, tmp_path, Limits(concurrency=2, back_off=0.001)))
    assert all(starts[n] - starts["fault"] >= 0.4 for n in (0, 2, 3, 4, 5))


def test_a_pause_that_is_too_long_stops_the_run(tmp_path):
    send = FakeModel(lambda prompt, before: Transient("429: daily quota", 7200.0))
    with pytest.raises(InputError, match=r"wants a pause of 7200 s \(429: daily quota\)"):
        list(collect(questions(3), send, tmp_path))


def test_nothing_to_send_with_is_refused_rather_than_waited_for():
    with pytest.raises(InputError, match="concurrency=0 must be at least 1"):
        Limits(concurrency=0)
