"""The clients of language models: what comes back, and which kind every fault is of."""

import http.server
import logging
import pickle
import socket
import sys
import time
import traceback

import llm_server
import pytest
from llm_server import KEY

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.llm import client as llm
from fgrlhf_jax.feedback.llm.client import Refused, Reply, Request, Transient

PROVIDERS = ("anthropic", "openai")
ASKED = Request("Why?", "Be brief.", 77, 0.5)


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    for name in PROVIDERS:
        monkeypatch.setenv(f"{name.upper()}_API_KEY", KEY)
        monkeypatch.delenv(f"{name.upper()}_BASE_URL", raising=False)


@pytest.fixture(params=PROVIDERS)
def provider(request) -> str:
    return request.param


def connect(provider: str, server, model: str = "m", timeout: float = 5.0) -> llm.Send:
    path = "/v1" if provider == "openai" else ""
    return llm.connect(provider, model, base_url=server.url + path, timeout=timeout)


def by_plan(what: str):
    return lambda prompt, before: what


def raised(provider: str, what: str, **checks) -> Exception:
    """What asking raises when every attempt meets ``what``."""
    with llm_server.running(by_plan(what), **checks) as server:
        stalls = what in ("timeout", "drip")
        ask = connect(provider, server, timeout=0.3 if stalls else 20)
        with pytest.raises((Transient, Refused, InputError)) as caught:
            ask(ASKED)
        assert len(server.bodies) == 1  # the clients' own retries are off
    return caught.value


def test_a_reply(provider):
    with llm_server.running(key=KEY) as server:
        reply = connect(provider, server)(ASKED)
        (body,) = server.bodies
    assert reply == Reply(llm_server.echo("Why?"), "end", 4, len(llm_server.echo("Why?")))
    assert body["model"] == "m"
    assert body["max_tokens"] == 77
    assert body["temperature"] == 0.5
    user = {"role": "user", "content": "Why?"}
    if provider == "anthropic":
        assert body["messages"] == [user]
        assert body["system"] == "Be brief."
    else:
        assert body["messages"] == [{"role": "system", "content": "Be brief."}, user]


def test_without_a_system_prompt_none_is_sent(provider):
    with llm_server.running() as server:
        connect(provider, server)(Request("Why?"))
        (body,) = server.bodies
    assert "system" not in body
    assert len(body["messages"]) == 1


@pytest.mark.parametrize(
    ("what", "stop"), [("refusal", "refusal"), ("length", "length"), ("slow", "end")]
)
def test_why_a_reply_stopped(provider, what, stop):
    with llm_server.running(by_plan(what)) as server:
        reply = connect(provider, server)(ASKED)
        assert (reply.text, reply.stop) == (llm_server.echo("Why?"), stop)
        assert server.delivered == {"Why?": 1}


def test_a_reply_without_words_is_a_reply(provider):
    with llm_server.running(by_plan("blank")) as server:
        assert connect(provider, server)(ASKED) == Reply("", "end", 4, 0)


@pytest.mark.parametrize("what", llm_server.FAULTS)
def test_a_fault_that_may_pass_is_transient(provider, what):
    started = time.monotonic()
    fault = raised(provider, what)
    assert type(fault) is Transient
    assert time.monotonic() - started < 20
    assert fault.retry_after == (0.002 if what == "429 after" else None)
    says = {
        **dict.fromkeys(("429", "500", "529", "408", "409"), f"{what}: fault by plan"),
        **dict.fromkeys(("truncated", "empty", "html"), f"is not one of {provider}'s"),
        "timeout": "no answer within 0.3 s",
        "drip": "not complete within 0.3 s",
        "cut": "the answer broke off",
        "drop": "no connection",
        "reset": "no connection",
        "error 200": "upstream failed",
    }
    assert says.get(what, "429") in str(fault)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("3", 3.0),
        ("0.25", 0.25),
        ("-1", None),
        ("soon", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    ],
)
def test_when_the_server_wants_to_be_asked_again(header, seconds):
    assert raised("openai", "429 after", pause=header).retry_after == seconds


def test_a_retry_after_that_is_a_date():
    then = http.server.BaseHTTPRequestHandler.date_time_string(None, time.time() + 100)
    assert 90 < raised("anthropic", "429 after", pause=then).retry_after <= 100


@pytest.mark.parametrize("code", [400, 413, 422])
def test_a_request_that_is_refused(provider, code):
    fault = raised(provider, f"{code} the prompt is too long")
    assert type(fault) is Refused
    assert str(fault) == f"{code}: the prompt is too long"


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("401 no", "does not accept the key in (ANTHROPIC|OPENAI)_API_KEY"),
        ("403 no", "does not accept the key in (ANTHROPIC|OPENAI)_API_KEY"),
        ("404 no model m", r"does not know the model 'm' \(404: no model m\); check model"),
        ("402 pay", "account is empty"),
        ("400 Your credit balance is too low", "account is empty"),
        ("429 insufficient_quota", "account is empty"),
        ("405 no", "does not speak (anthropic|openai)'s protocol"),
    ],
)
def test_what_no_other_request_would_survive_stops_the_run(provider, what, says):
    fault = raised(provider, what)
    assert type(fault) is InputError
    with pytest.raises(InputError, match=says):
        raise fault


def test_an_unknown_model(provider):
    with llm_server.running(model="other") as server:
        ask = connect(provider, server)
        with pytest.raises(InputError, match="does not know the model 'm'"):
            ask(ASKED)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def test_an_address_where_nobody_is(provider):
    ask = llm.connect(provider, "m", base_url=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(Transient, match=r"no connection to http://127.*refused"):
        ask(ASKED)


def test_a_model_that_takes_no_temperature(provider):
    """The next try, one that is counted, goes without."""
    with llm_server.running(temperature=False) as server:
        ask = connect(provider, server)
        with pytest.raises(Transient, match="m takes no temperature"):
            ask(ASKED)
        assert ask(ASKED).text == ask(ASKED).text == llm_server.echo("Why?")
        assert ["temperature" in body for body in server.bodies] == [True, False, False]


def test_a_model_that_wants_max_completion_tokens():
    with llm_server.running(temperature=False, max_tokens=False) as server:
        ask = connect("openai", server)
        for _ in range(2):
            with pytest.raises(Transient, match="takes no"):
                ask(ASKED)
        assert ask(ASKED).text == ask(ASKED).text
        assert [body.get("max_completion_tokens") for body in server.bodies[2:]] == [77, 77]
        assert len(server.bodies) == 4


def test_a_temperature_that_is_out_of_range_is_not_left_out(provider):
    fault = raised(provider, "400 temperature: must be at most 1")
    assert type(fault) is Refused


def test_what_is_half_a_character_can_be_written_to_a_file(provider):
    with llm_server.running(answer=lambda prompt: "a\ud83d") as server:
        assert connect(provider, server)(ASKED).text == "a?"


@pytest.mark.parametrize(
    ("usage", "counted"),
    [(None, (4, 6)), ({"prompt_tokens": 11}, (11, 6)), ({"completion_tokens": 3}, (4, 3))],
)
def test_a_server_that_does_not_count_tokens(monkeypatch, usage, counted):
    kept = llm_server.Handler.reply

    def reply(self, *args):
        return kept(self, *args) | {"usage": usage}

    monkeypatch.setattr(llm_server.Handler, "reply", reply)
    with llm_server.running() as server:
        reply = connect("openai", server)(ASKED)
    assert (reply.input_tokens, reply.output_tokens) == counted


@pytest.mark.parametrize("provider", PROVIDERS)
def test_no_key(monkeypatch, provider):
    variable = f"{provider.upper()}_API_KEY"
    for value in ("", " ", None):
        monkeypatch.setenv(variable, value) if value is not None else monkeypatch.delenv(
            variable
        )
        with pytest.raises(InputError, match=f"set the environment variable {variable}"):
            llm.connect(provider, "m")
        with pytest.raises(InputError, match=f"set the environment variable {variable}"):
            llm.connect(provider, "m", base_url="https://example.org/v1")


def test_a_server_on_this_machine_needs_no_key(monkeypatch, provider):
    monkeypatch.delenv(f"{provider.upper()}_API_KEY")
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")  # and no proxy
    with llm_server.running() as server:
        assert connect(provider, server)(ASKED).stop == "end"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"provider": "clippy"}, "provider='clippy' is none of anthropic, openai, local"),
        ({"model": ""}, "model is empty"),
        ({"timeout": 0}, "timeout=0 must be above 0"),
        ({"base_url": "localhost:8000"}, "base_url is no address"),
        ({"base_url": "ftp://here"}, "base_url is no address"),
        ({"base_url": "http://here:port"}, "base_url is no address"),
        ({"base_url": f"http://me:{KEY}@here"}, "base_url holds a name, a password"),
        ({"base_url": f"http://here?key={KEY}"}, "base_url holds a name, a password"),
    ],
)
def test_what_cannot_be_connected_to(given, says):
    options = {"provider": "openai", "model": "m"} | given
    with pytest.raises(InputError, match=says) as caught:
        llm.connect(**options)
    assert KEY not in str(caught.value)


def test_a_key_with_a_line_break_in_it(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nx")
    with pytest.raises(
        InputError, match="OPENAI_API_KEY holds characters that no key has"
    ) as e:
        llm.connect("openai", "m")
    assert KEY not in str(e.value)


def test_a_client_library_that_is_missing(monkeypatch, provider):
    monkeypatch.setitem(sys.modules, provider, None)
    with pytest.raises(InputError, match=r"pip install 'fgrlhf_jax\[collect\]'"):
        llm.connect(provider, "m")


@pytest.mark.parametrize(
    "what", [*llm_server.QUICK, "timeout", "401", "403", "404", "400 no", f"400 {KEY}"]
)
def test_a_key_is_in_no_error_and_no_log(provider, what, caplog):
    """Not even where a server repeats it, in a printed chain of exceptions, or at level DEBUG."""
    with caplog.at_level(logging.DEBUG):
        fault = raised(provider, f"{what} {KEY}" if what in ("401", "403") else what)
    printed = "".join(traceback.format_exception(fault))
    assert fault.__cause__ is None
    assert fault.__context__ is None
    for text in (printed, repr(fault), str(vars(fault)), caplog.text):
        assert KEY not in text
    assert KEY.encode() not in pickle.dumps(str(fault))
    if KEY in what:
        assert "[key]" in str(fault)


def test_a_placeholder_of_a_key_is_left_in_peace(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    assert str(raised("openai", "400 maximum exceeded")) == "400: maximum exceeded"


def test_the_address_is_the_configs_alone(monkeypatch):
    """An environment variable would be something that determines an answer unseen."""
    with llm_server.running() as server, llm_server.running() as other:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", other.url)
        monkeypatch.setenv("OPENAI_BASE_URL", other.url + "/v1")
        for provider in PROVIDERS:
            connect(provider, server)(ASKED)
        assert len(server.bodies) == 2
        assert not other.bodies


def test_a_last_slash_and_a_version_do_not_matter():
    with llm_server.running() as server:
        for path in ("", "/", "/v1", "/v1/"):
            llm.connect("anthropic", "m", base_url=server.url + path)(ASKED)
        llm.connect("openai", "m", base_url=server.url + "/v1/")(ASKED)
        assert set(server.paths) == {"/v1/messages", "/v1/chat/completions"}


def test_estimate_tokens():
    assert [llm.estimate_tokens(t) for t in ("", "a", "four", "fives", "🙂")] == [0, 1, 1, 2, 1]
