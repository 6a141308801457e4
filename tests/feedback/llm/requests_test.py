"""Many requests: each is answered once, in order, within the limits, despite faults."""

import _thread
import asyncio
import threading
import time

import llm_server
import pytest
from request_cases import FakeModel, answer, cached_prompts, collect, connected, questions, save

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.llm import requests as llm_requests
from fgrlhf_jax.feedback.llm.client import PROVIDERS, Rejected
from fgrlhf_jax.feedback.llm.requests import Usage
from fgrlhf_jax.runtime.files import read_jsonl


@pytest.mark.parametrize("provider", PROVIDERS)
def test_one_fifth_of_the_tries_fails(tmp_path, provider, request, caplog):
    count, usage = request.config.getoption("--requests"), Usage()
    with llm_server.running(llm_server.shaky(0.2, slow=0.05)) as server:
        counts = save(questions(count), connected(server, provider), tmp_path, usage)
        assert 1 < server.peak <= 8
    assert counts == (count, 0)
    rows = read_jsonl(tmp_path / "out.jsonl")
    assert [row["prompt"] for row in rows] == [request.prompt for request in questions(count)]
    assert all(row["text"] == llm_server.echo(row["prompt"]) for row in rows)
    assert list(server.delivered.values()) == [1] * count  # no delivered reply was requested again
    assert usage.requests == sum(server.received.values()) == count + usage.retried
    assert 0.1 * count < usage.retried < 0.5 * count
    assert caplog.text.count("trying again") == 1


@pytest.mark.parametrize("action", ["blank", "stop error", "html"])
def test_an_unusable_answer_is_requested_again_and_never_stored(tmp_path, action):
    requests, usage = questions(3), Usage(retries=2)
    with llm_server.running(lambda prompt, before: "ok" if before else action) as server:
        replies = collect(requests, connected(server), tmp_path / "1", usage)
        assert [reply.stop for reply in replies] == ["end"] * 3
        assert usage.retried == 3
    with llm_server.running(lambda *_: action) as server:
        with pytest.raises(InputError, match="3 of 3 requests have no reply after up to 3 tries"):
            save(requests, connected(server), tmp_path, Usage(retries=2))
        assert set(server.received.values()) == {3}
    assert not cached_prompts(tmp_path, requests)
    with llm_server.running() as server:
        assert save(requests, connected(server), tmp_path) == (3, 0)


def test_an_answer_of_reasoning_alone_is_not_requested_again(tmp_path):
    with llm_server.running(lambda *_: "thoughts") as server:  # they would use up the tokens again
        with pytest.raises(InputError, match="only reasoning and no text; raise max_new_tokens"):
            list(collect(questions(2), connected(server), tmp_path))
        assert len(server.bodies) == 2


def test_in_a_running_event_loop_as_in_a_notebook(tmp_path):
    requests = questions(12)

    async def notebook(server) -> list:
        replies = collect(requests, connected(server), tmp_path / "a")
        next(replies)
        replies.close()
        return [*collect(requests, connected(server), tmp_path / "b")]

    with llm_server.running(llm_server.shaky(0.2)) as server:
        replies = asyncio.run(notebook(server))
    assert [reply.text for reply in replies] == [llm_server.echo(r.prompt) for r in requests]


def test_concurrency_and_requests_per_minute_are_bounded(tmp_path):
    with llm_server.running(work=0.02) as server:
        list(collect(questions(24), connected(server), tmp_path / "1", Usage(concurrency=3)))
        assert server.peak == 3
    with llm_server.running(lambda prompt, before: "ok" if before else "500") as server:
        usage = Usage(requests_per_minute=1800)
        list(collect(questions(6), connected(server), tmp_path / "2", usage))
        assert server.times[-1] - server.times[0] >= 11 / 30 * 0.7  # the first may be late
    usage, began = Usage(requests_per_minute=1, max_requests=1), time.monotonic()
    with pytest.raises(InputError, match="max_requests=1"):
        list(collect(questions(6), FakeModel(), tmp_path / "3", usage))
    assert time.monotonic() - began < 30  # no request waits for a start that the cap forbids


def test_a_fault_of_every_request_stops_the_run(tmp_path):
    with llm_server.running(model="other") as server:
        with pytest.raises(InputError, match=r"every request \(404: model: m does not exist"):
            list(collect(questions(1000), connected(server), tmp_path))
        assert len(server.bodies) <= 16
    with pytest.raises(InputError, match=r"10 requests in a row have no reply .*no connection"):
        list(collect(questions(1000), connected(server, retries=1), tmp_path))  # it has ended


@pytest.mark.parametrize("batch_size", [0, 4])
def test_nothing_is_written_if_all_requests_are_rejected(tmp_path, batch_size):
    warm = Rejected("400: too warm")
    send = (lambda batch: [warm] * len(batch)) if batch_size else FakeModel(lambda *_: warm)
    with pytest.raises(InputError, match=r"10 requests in a row have no reply \(400: too warm\)"):
        save(questions(30), send, tmp_path, batch_size=batch_size)
    for name in ("out.jsonl", "out.rejected.jsonl"):
        assert (tmp_path / name).read_bytes() == b""
    usage = Usage(max_refusals=0)
    assert save(questions(30), send, tmp_path, usage, batch_size=batch_size) == (0, 30)


def test_rejections_between_replies_are_written(tmp_path):
    """Rejections that no reply follows before a cap are sent again, which costs nothing."""
    send = FakeModel(lambda prompt, _: None if prompt.endswith("0") else Rejected("too long"))
    with pytest.raises(InputError, match="max_requests=37"):
        save(questions(40), send, tmp_path, Usage(concurrency=1, max_requests=37))
    assert save(questions(40), send, tmp_path, Usage(concurrency=1)) == (4, 36)
    rejected = [row["prompt"] for row in read_jsonl(tmp_path / "out.rejected.jsonl")]
    assert rejected == [f"question {n}" for n in range(40) if n % 10]
    assert len(send.prompts) == 46


@pytest.mark.parametrize("twice", [False, True])
def test_interrupted_while_waiting(tmp_path, monkeypatch, twice):
    """Just before a wait, when nothing wakes the main thread; and a second time during cleanup."""
    loops, wait, began = [], asyncio.wait, time.monotonic()

    async def send(request):
        loops.append(asyncio.get_running_loop())
        if not twice:
            threading.Timer(0.1, _thread.interrupt_main).start()  # does not end the wait
        await asyncio.sleep(20)

    def interrupted(tasks, **options):
        if loops and twice:
            raise KeyboardInterrupt
        return wait(tasks, **options)

    monkeypatch.setattr(llm_requests, "GRACE", 0.01)
    monkeypatch.setattr(asyncio, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(questions(1), send, tmp_path)
    assert [loop.is_closed() for loop in loops] == [True]  # requests in flight are cancelled
    assert time.monotonic() - began < 15


def test_requests_in_flight_may_end_when_a_reader_stops_and_no_others_start(tmp_path):
    send = FakeModel()
    replies = collect(questions(5000), send, tmp_path)
    next(replies)
    replies.close()
    assert 8 <= len(send.prompts) <= 16
    assert cached_prompts(tmp_path, questions(20)) == set(send.prompts)


def test_a_row_without_a_reply_does_not_stop_the_others(tmp_path, caplog):
    faults = {f"question {n}": reason for n, reason in {4: "500", 7: "a", 8: "a"}.items()}
    send = FakeModel(lambda prompt, before: faults.get(prompt))
    message = r"3 of 20 requests have no reply after up to 3 tries each \(2 × a; 1 × 500\)"
    with pytest.raises(InputError, match=message + ".*raise timeout"):
        save(questions(20), send, tmp_path, Usage(retries=2))
    assert len(read_jsonl(tmp_path / "out.jsonl")) == 4
    assert len(cached_prompts(tmp_path, questions(20))) == 17
    before = len(send.prompts)
    faults.clear()
    assert save(questions(20), send, tmp_path) == (20, 0)
    assert sorted(send.prompts[before:]) == ["question 4", "question 7", "question 8"]
    send = FakeModel(lambda prompt, before: ZeroDivisionError("bug"))
    with pytest.raises(ZeroDivisionError):  # an error of the program is not hidden
        list(collect(questions(20), send, tmp_path / "other"))
    assert len(send.prompts) <= 16


def test_replies_come_as_soon_as_all_before_them_are_known(tmp_path):
    first, second, third = questions(3)
    order, allowed = [], {first}

    async def send(request):
        while request not in allowed or (request == second and third not in order):
            await asyncio.sleep(0.001)
        order.append(request)
        return answer(request)

    replies = collect([first, second, third], send, tmp_path)
    assert next(replies) == answer(first)
    assert order == [first]
    allowed |= {second, third}
    assert list(replies) == [answer(second), answer(third)]
    assert order == [first, third, second]


def test_batches_of_a_local_model(tmp_path):
    batches, requests = [], questions(11) + questions(2)

    def outcome(request):
        return Rejected("too long") if request == requests[5] else answer(request)

    def send(batch):
        assert threading.current_thread() is threading.main_thread()
        batches.append([requests.index(request) for request in batch])
        return list(map(outcome, batch))

    capped, usage = Usage(max_requests=7), Usage()
    with pytest.raises(InputError, match="max_requests=7"):
        save(requests, send, tmp_path, capped, batch_size=4)
    assert (capped.requests, capped.output_tokens) == (7, 18)
    replies = list(collect(requests, send, tmp_path, usage, batch_size=4))
    assert batches == [[0, 1, 2, 3], [4, 5, 6], [5, 7, 8, 9], [10]]
    assert replies == list(map(outcome, requests))
    assert (usage.requests, usage.output_tokens) == (5, 12)


@pytest.mark.parametrize("cap", [{"max_requests": 7}, {"max_tokens": 33}], ids=str)
def test_a_cap_stops_and_a_later_run_continues(tmp_path, cap):
    send = FakeModel()
    for run_number in range(1, 4):
        usage = Usage(concurrency=1, **cap)
        message = r"stopped at max_\w+=\d+ after 7 requests.* 14 tokens read and 21 written"
        with pytest.raises(InputError, match=message):
            save(questions(22), send, tmp_path, usage)
        assert len(read_jsonl(tmp_path / "out.jsonl")) == 7 * run_number
    assert save(questions(22), send, tmp_path) == (22, 0)
    assert sorted(send.prompts) == sorted(request.prompt for request in questions(22))


def test_requests_in_flight_at_a_cap_are_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(llm_requests, "GRACE", 0.0)
    usage, requests = Usage(concurrency=4, max_tokens=5), questions(20)

    async def slow(request):
        await asyncio.sleep(0.02 + 0.02 * requests.index(request))
        return answer(request)

    with pytest.raises(InputError, match="max_tokens=5"):
        list(collect(requests, slow, tmp_path, usage))
    assert (usage.requests, usage.output_tokens) == (4, 12)
    assert len(cached_prompts(tmp_path, requests)) == 4


@pytest.mark.parametrize("action", ["503", "blank"])
def test_a_cap_counts_every_try_and_the_tokens_of_unusable_answers(tmp_path, action):
    usage = Usage(concurrency=1, max_requests=7)
    with llm_server.running(lambda _, before: "ok" if before > 1 else action) as server:
        with pytest.raises(InputError, match=r"after 7 requests \(4 of them retries\)"):
            list(collect(questions(5), connected(server), tmp_path, usage))
        assert len(server.bodies) == 7
    assert (usage.input_tokens > 2 * len("question 0")) == (action == "blank")
