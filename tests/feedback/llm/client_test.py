"""The clients of language models: what comes back, and which kind every fault is of."""

import http.server
import socket
import sys
import time
import traceback

import llm_server
import pytest
from llm_server import KEY

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.llm.client import (
    PROVIDERS,
    Refused,
    Reply,
    Request,
    Transient,
    connect,
    estimate_tokens,
)

REQUEST = Request("Why?", "Be brief.", 77, 0.5)
ANSWER = llm_server.echo("Why?")


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    for name in PROVIDERS:
        monkeypatch.setenv(f"{name.upper()}_API_KEY", KEY)
        monkeypatch.delenv(f"{name.upper()}_BASE_URL", raising=False)


@pytest.fixture(params=PROVIDERS)
def provider(request) -> str:
    return request.param


def connected(provider: str, server, timeout: float = 20.0):
    path = "/v1" if provider == "openai" else ""
    return connect(provider, "m", base_url=server.url + path, timeout=timeout)


def serve(action: str = "ok", **options):
    return llm_server.running(lambda prompt, before: action, **options)


@pytest.fixture
def fault_of(caplog):
    """What a request raises when every attempt meets an action of the server.

    The key is in no exception, not in a printed chain of them, and in no log at level DEBUG.
    """

    def send(provider: str, action: str, **options) -> Exception:
        with caplog.at_level("DEBUG"), serve(action, **options) as server:
            stalls = action in ("timeout", "drip")
            send = connected(provider, server, timeout=0.3 if stalls else 20)
            with pytest.raises((Transient, Refused, InputError)) as caught:
                send(REQUEST)
            assert len(server.bodies) == 1  # the clients' own retries are off
        fault = caught.value
        assert fault.__cause__ is fault.__context__ is None
        printed = "".join(traceback.format_exception(fault))
        assert KEY not in printed + repr(fault) + str(vars(fault)) + caplog.text
        return fault

    return send


# --- replies


def test_a_reply(provider):
    with serve(key=KEY) as server:
        reply = connected(provider, server)(REQUEST)
        connected(provider, server)(Request("Why?"))
        body, without_system = server.bodies
    assert reply == Reply(ANSWER, "end", 4, len(ANSWER))
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 77, 0.5)
    user = {"role": "user", "content": "Why?"}
    if provider == "anthropic":
        assert body["messages"] == [user]
        assert body["system"] == "Be brief."
    else:
        assert body["messages"] == [{"role": "system", "content": "Be brief."}, user]
    assert "system" not in without_system
    assert without_system["messages"] == [user]


SCHEMA = {
    "type": "object",
    "properties": {"better": {"type": "string", "enum": ["A", "B", "tie"]}},
    "required": ["better"],
    "additionalProperties": False,
}


def test_a_reply_that_is_held_to_a_schema(provider):
    with serve(answer=lambda prompt: '{"better": "A"}') as server:
        reply = connected(provider, server)(Request("Why?", schema=SCHEMA))
        (body,) = server.bodies
    assert reply.text == '{"better": "A"}'
    strict = {"name": "reply", "strict": True, "schema": SCHEMA}
    assert (body.get("output_config"), body.get("response_format")) == {
        "anthropic": ({"format": {"type": "json_schema", "schema": SCHEMA}}, None),
        "openai": (None, {"type": "json_schema", "json_schema": strict}),
    }[provider]


@pytest.mark.parametrize(
    "message",
    [
        "This response_format type is unavailable now",
        "output_config: Extra inputs are not permitted",
        "Invalid schema for response_format 'reply'",
        "m does not support structured outputs",
    ],
)
def test_a_model_that_takes_no_schema(provider, message):
    with serve(f"400 {message}") as server:
        send = connected(provider, server)
        with pytest.raises(InputError, match=r"no JSON schema .*--config.reply_format=text"):
            send(Request("Why?", schema=SCHEMA))
        with pytest.raises(Refused):
            send(Request("Why?"))


@pytest.mark.parametrize(
    ("action", "answer", "reply"),
    [
        ("refusal", ANSWER, (ANSWER, "refusal")),
        ("length", ANSWER, (ANSWER, "length")),
        ("slow", ANSWER, (ANSWER, "end")),
        ("blank", ANSWER, ("", "end")),
        ("ok", "a\ud83d", ("a?", "end")),  # half a character could not be written to a file
    ],
)
def test_text_and_stop(provider, action, answer, reply):
    with serve(action, answer=lambda prompt: answer) as server:
        received = connected(provider, server)(REQUEST)
        assert (received.text, received.stop) == reply
        assert server.delivered == {"Why?": 1}


@pytest.mark.parametrize(
    ("usage", "counted"),
    [(None, (4, 6)), ({"prompt_tokens": 11}, (11, 6)), ({"completion_tokens": 3}, (4, 3))],
)
def test_a_server_that_does_not_count_tokens(monkeypatch, usage, counted):
    reply = llm_server.Handler.reply
    monkeypatch.setattr(llm_server.Handler, "reply", lambda *args: reply(*args) | {"usage": usage})
    with serve() as server:
        received = connected("openai", server)(REQUEST)
    assert (received.input_tokens, received.output_tokens) == counted


def test_estimate_tokens():
    assert list(map(estimate_tokens, ("", "a", "four", "fives", "🙂"))) == [0, 1, 1, 2, 1]


# --- faults


@pytest.mark.parametrize("action", llm_server.FAULTS)
def test_a_fault_that_may_pass_is_transient(fault_of, provider, action):
    fault = fault_of(provider, action)
    assert type(fault) is Transient
    assert fault.retry_after == (0.002 if action == "429 after" else None)
    messages = {
        **dict.fromkeys(("429", "500", "529", "408", "409"), f"{action}: fault by plan"),
        **dict.fromkeys(("truncated", "empty", "html"), f"is not one of {provider}'s"),
        "timeout": "no answer within 0.3 s",
        "drip": "not complete within 0.3 s",
        "cut": "the answer broke off",
        "drop": "no connection to http://127",
        "reset": "no connection",
        "error 200": "upstream failed",
    }
    assert messages.get(action, "429") in str(fault)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("3", 3.0),
        ("0.25", 0.25),
        ("-1", None),
        ("soon", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        (100, 100),  # from now, as a date
    ],
)
def test_when_the_server_accepts_requests_again(fault_of, header, seconds):
    if header == 100:
        then = time.time() + 100
        header = http.server.BaseHTTPRequestHandler.date_time_string(None, then)
    assert fault_of("openai", "429 after", pause=header).retry_after == (
        pytest.approx(seconds, abs=20) if seconds else seconds
    )


@pytest.mark.parametrize(
    "message",
    ["400: the prompt is too long", "413: no", "422: no", "400: temperature: at most 1"],
)
def test_a_request_that_is_refused(fault_of, provider, message):
    fault = fault_of(provider, message.replace(":", "", 1))
    assert type(fault) is Refused
    assert str(fault) == message


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (f"401 {KEY}", "does not accept the key in {}_API_KEY (401: [key]); correct it"),
        (f"403 {KEY}", "does not accept the key in {}_API_KEY (403: [key]); correct it"),
        ("404 no model m", "does not know the model 'm' (404: no model m); check model"),
        ("402 pay", "account is empty"),
        ("400 Your credit balance is too low", "account is empty"),
        ("429 insufficient_quota", "account is empty"),
        ("405 no", "does not speak {}'s protocol"),
    ],
)
def test_what_every_request_would_meet_stops_the_run(fault_of, provider, action, message):
    fault = fault_of(provider, action)
    assert type(fault) is InputError
    name = provider.upper() if "_API" in message else provider
    assert message.format(name) in str(fault)


def test_a_message_that_repeats_the_key(fault_of, provider, monkeypatch):
    assert str(fault_of(provider, f"400 {KEY}")) == "400: [key]"
    monkeypatch.setenv("OPENAI_API_KEY", "x")  # a placeholder is no secret
    with serve("400 max exceeded") as server, pytest.raises(Refused, match="400: max exceeded"):
        connected("openai", server)(REQUEST)


@pytest.mark.parametrize(
    ("provider", "fields"),
    [
        ("anthropic", ["temperature"]),
        ("openai", ["temperature"]),
        ("openai", ["temperature", "max_tokens"]),
    ],
)
def test_a_model_that_does_not_take_a_field(provider, fields):
    """The next try, one that is counted, goes without."""
    with serve(**dict.fromkeys(fields, False)) as server:
        send = connected(provider, server)
        for field in fields:
            with pytest.raises(Transient, match=f"m takes no {field}"):
                send(REQUEST)
        assert send(REQUEST).text == send(REQUEST).text == ANSWER
        for body in server.bodies[-2:]:
            assert not set(fields) & set(body)
            assert 77 in (body.get("max_tokens"), body.get("max_completion_tokens"))
        assert len(server.bodies) == len(fields) + 2


# --- keys and addresses


def test_no_key(monkeypatch, provider):
    variable = f"{provider.upper()}_API_KEY"
    for value in ("", " "):
        monkeypatch.setenv(variable, value)
        for url in ("", "https://example.org/v1"):
            with pytest.raises(InputError, match=f"set the environment variable {variable}"):
                connect(provider, "m", base_url=url)
    monkeypatch.delenv(variable)
    with socket.socket() as listening:  # and no proxy to this machine
        listening.bind(("127.0.0.1", 0))
        free_port = listening.getsockname()[1]
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port}")
    with serve() as server:
        assert connected(provider, server)(REQUEST).stop == "end"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "localhost:8000"}, "base_url is no address"),
        ({"base_url": "ftp://here"}, "base_url is no address"),
        ({"base_url": "http://here:port"}, "base_url is no address"),
        ({"base_url": f"http://me:{KEY}@here"}, "base_url holds a name, a password"),
        ({"base_url": f"http://here?key={KEY}"}, "base_url holds a name, a password"),
        ({"key": f"{KEY}\nx"}, "OPENAI_API_KEY holds characters that no key has"),
        ({"missing": "anthropic"}, r"pip install 'fgrlhf_jax\[collect\]'"),
        ({"missing": "openai"}, r"pip install 'fgrlhf_jax\[collect\]'"),
    ],
)
def test_what_cannot_be_connected_to(monkeypatch, options, message):
    monkeypatch.setenv("OPENAI_API_KEY", options.pop("key", KEY))
    provider = options.pop("missing", "openai")
    if "pip" in message:
        monkeypatch.setitem(sys.modules, provider, None)
    with pytest.raises(InputError, match=message) as caught:
        connect(**{"provider": provider, "model": "m"} | options)
    assert KEY not in str(caught.value)


def test_the_address_is_the_configs_alone(monkeypatch):
    """An environment variable would be something that determines a reply unseen."""
    with serve() as server, serve() as other:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", other.url)
        monkeypatch.setenv("OPENAI_BASE_URL", other.url + "/v1")
        for path in ("", "/", "/v1", "/v1/"):  # a last slash and a version do not matter
            connect("anthropic", "m", base_url=server.url + path)(REQUEST)
        connect("openai", "m", base_url=server.url + "/v1/")(REQUEST)
        assert set(server.paths) == {"/v1/messages", "/v1/chat/completions"}
        assert not other.bodies
