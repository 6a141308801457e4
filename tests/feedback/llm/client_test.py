"""The clients of language models: replies, and the kind of every fault."""

import asyncio
import http.server
import json
import ssl
import subprocess
import sys
import time
import traceback

import llm_server
import pytest
from llm_server import KEY

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.llm.answers import one_field
from fgrlhf_jax.feedback.llm.client import PROVIDERS, Client, Rejected, Reply, Request, find_fault

REQUEST = Request("Why?", 77, 0.5)
ANSWER = llm_server.echo("Why?")


@pytest.fixture(params=PROVIDERS)
def provider(request) -> str:
    return request.param


def serve(action: str = "ok", **options):
    return llm_server.running(lambda prompt, before: action, **options)


def ask(provider: str, url: str, *requests: Request, **options) -> list:
    """The outcomes of requests, which are sent one after the other."""
    options = {"base_url": f"{url}/v1", "retries": 0, "timeout": 20} | options

    async def run():
        client = Client(provider, "m", **options)
        try:
            return [await client(request) for request in requests or [REQUEST]]
        finally:
            await client.aclose()

    return asyncio.run(run())


@pytest.fixture
def fault_of(caplog):
    """The outcome of a request if the server answers every try with the same action.

    Checks that the key is in no exception, no traceback and no log at level DEBUG.
    """

    def send(provider: str, action: str, tries: int = 1, **options):
        timeout = 0.3 if action in ("timeout", "drip") else 20
        with caplog.at_level("DEBUG"), serve(action, **options) as server:
            try:
                (fault,) = ask(provider, server.url, retries=tries - 1, timeout=timeout)
            except InputError as error:
                fault = error
                assert fault.__cause__ is fault.__context__ is None
                assert KEY not in "".join(traceback.format_exception(fault))
            assert len(server.bodies) == tries
        assert KEY not in repr(fault) + str(vars(fault) if hasattr(fault, "__dict__") else "")
        assert KEY not in caplog.text
        return find_fault(fault) if isinstance(fault, Reply) else fault

    return send


@pytest.mark.parametrize(
    ("action", "stop"), [("ok", "end"), ("slow", "end"), *(2 * (x,) for x in ("refusal", "length"))]
)
def test_a_request_and_its_reply(provider, action, stop):
    with serve(action, key=KEY) as server:
        (reply,) = ask(provider, server.url)
        (body,) = server.bodies
        assert server.delivered == {"Why?": 1}
    assert reply == Reply(ANSWER, stop, 4, len(ANSWER))
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 77, 0.5)
    assert body["messages"] == [{"role": "user", "content": "Why?"}]


def chat(message, stop="stop", **usage) -> str:
    return json.dumps({"choices": [{"message": message, "finish_reason": stop}], "usage": usage})


def parts(*content) -> dict:
    return {"content": list(content)}


def stream(*events, end="data: [DONE]\n\n") -> str:
    return ": wait\n\ndata:\n\n" + "".join(f"data: {json.dumps(e)}\n\n" for e in events) + end


def delta(stop=None, **content) -> dict:
    return {"choices": [{"delta": content, "finish_reason": stop}]}


HALF, UNKNOWN = chat({"content": "half a te"}), [("half a te", "error"), (None, "tool_calls")]
THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
TEXT = {"type": "text", "text": "B"}
COUNTS = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 8}}
OTHER = {"choices": [{"index": 1, "delta": {"content": "of another choice"}}]}
STOP = {"stop_reason": "max_tokens"}
STOPS = {"SAFETY": "refusal", "EOS_token": "end", "model_length": "length"}
CLAUDE = [
    {"type": "message_start", "message": {"usage": {"input_tokens": 7, "output_tokens": 1}}},
    {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "hm"}},
    {"type": "content_block_start", "content_block": {"type": "text", "text": "a"}},
    {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "b"}},
    {"type": "message_delta", "usage": {"output_tokens": 8}, "delta": STOP},
]


@pytest.mark.parametrize(
    ("body", "reply"),  # of a fault a part of its message
    [
        (chat(parts(THOUGHT, TEXT, TEXT), prompt_tokens=11), Reply("BB", "end", 11, 1)),
        (chat(parts("a", {"text": "b"}), completion_tokens=3), Reply("ab", "end", 1, 3)),
        (chat(parts({"text": "hm", "thought": True}, TEXT)), Reply("B", "end", 1, 1)),
        *((chat({"content": TEXT}, stop), Reply("B", "end", 1, 1)) for stop in (None, "")),
        *((chat({"content": "B"}, stop), Reply("B", known, 1, 1)) for stop, known in STOPS.items()),
        (chat({"content": TEXT}, None, completion_tokens=77), Reply("B", "length", 1, 77)),
        (chat({"content": "B"}, prompt_tokens="?"), Reply("B", "end", 1, 1)),
        ("retry: 3\nid: 7\n" + stream(delta("stop", content="a")), Reply("a", "end", 1, 1)),
        (chat({"content": "", "refusal": "No."}), Reply("No.", "refusal", 1, 1)),
        (chat({"content": "a\ud83d"}), Reply("a?", "end", 1, 1)),  # else no file could hold it
        (stream(delta(content="a"), delta("length", content="b")), Reply("ab", "length", 1, 1)),
        (stream(delta(content="a"), delta("stop"), COUNTS), Reply("a", "end", 7, 8)),
        (stream(*CLAUDE, end=""), Reply("ab", "length", 7, 8)),
        (stream(delta(content="a"), OTHER, delta("stop", content="b")), Reply("ab", "end", 1, 1)),
        (chat({"content": "B"}, prompt_tokens=-9, completion_tokens=True), Reply("B", "end", 1, 1)),
        *((HALF.replace(at, at + '"error": "x", ', 1), "protocol (x)") for at in ("{", "[{")),
        *((chat({"content": x}, y), f"unknown reason, '{y}'") for x, y in UNKNOWN),
        (chat({"content": " "}), "the reply is empty"),
        (chat(parts(THOUGHT), "length"), "only reasoning and no text; raise max_new_tokens"),
        (chat(parts({"type": "text", "text": 3})), "does not follow openai's protocol"),
        (stream(delta(content="a"), end=""), "the stream ended early"),
        (stream({"error": {"message": "overloaded"}}), "overloaded"),
        ("[" * 99_999, "does not follow openai's protocol (RecursionError"),
    ],
)
def test_other_forms_of_an_answer(body, reply):
    with serve("body", body=body) as server:
        (received,) = ask("anthropic" if "message_start" in body else "openai", server.url)
    assert received == reply if isinstance(reply, Reply) else reply in find_fault(received)


SCHEMA = one_field("better", enum=["A", "B", "tie"])


def test_a_reply_under_a_schema(provider):
    with serve(answer=lambda prompt: '{"better": "A"}') as server:
        (reply,) = ask(provider, server.url, Request("Why?", schema=SCHEMA))
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
        *("This response_format type is unavailable now", "m does not support structured outputs"),
        *("output_config: Extra inputs are not permitted", "Invalid schema for response_format"),
    ],
)
def test_a_model_without_support_for_schemas(provider, message):
    with serve(f"400 {message}") as server:
        with pytest.raises(InputError, match=r"not support schemas .*reply_format=text"):
            ask(provider, server.url, Request("Why?", schema=SCHEMA))
        assert ask(provider, server.url) == [Rejected(f"400: {message}")]


@pytest.mark.parametrize("action", llm_server.FAULTS)
def test_temporary_faults(fault_of, provider, action):
    """The official clients try again after faults of the server and of the network."""
    tries = 1 if action in llm_server.BROKEN else 2
    fault = fault_of(provider, action, tries)
    messages = {
        "429 429 after 500 529 408 409": action[:3],
        "truncated empty html stream": f"does not follow {provider}'s protocol",
        "timeout drip": "no complete answer within 0.3 s",
        "drop reset cut": "no connection to http://127",
        "error 200": "upstream failed",
        "stop error": "unknown reason, 'error'",
        "blank": "the reply is empty",
        "thoughts": "raise max_new_tokens",
    }
    assert next(text for names, text in messages.items() if action in names) in fault


def test_retry_after(fault_of, provider, monkeypatch):
    """A date is relative to that of the answer, even if the server's clock is wrong."""
    date, there = http.server.BaseHTTPRequestHandler.date_time_string, time.time() + 9999
    monkeypatch.setattr(llm_server.Handler, "date_time_string", lambda self: date(self, there))
    for header, tries, fault in (
        *(("inf", 1, "wants a pause of inf s"), (date(None, there), 3, "429: ")),
        (date(None, there + 7200), 1, "(429: after, and wants a pause of 7200 s)"),
    ):
        assert fault in str(fault_of(provider, "429 after", tries, pause=header))


def test_rejected_requests(fault_of, provider, monkeypatch):
    for message in ("400: too long a prompt", "413: no", "422: no", "400: temperature: 0 to 1"):
        assert fault_of(provider, message.replace(":", "", 1)) == Rejected(message)
    assert fault_of(provider, f"400 {KEY}") == Rejected("400: [key]")
    monkeypatch.setenv(f"{provider.upper()}_API_KEY", "x")  # a placeholder is no secret
    with serve("400 max exceeded") as server:
        outcome, invalid = ask(provider, server.url, REQUEST, Request("a\ud83d"))
    assert outcome == Rejected("400: max exceeded")
    assert "surrogates not allowed" in invalid.reason


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (f"401 {KEY}", "refuses every request (401: [key]); check {}_API_KEY, its account"),
        (f"403 {KEY}", "refuses every request (403: [key]); check {}_API_KEY"),
        ("404 no model m", "(404: no model m); check {}_API_KEY, its account, base_url, and model"),
        *((f"{status} no", f"({status}: no); check") for status in (402, 405)),
        ("400 Your credit balance is too low", "(400: Your credit balance is too low); check"),
        ("429 insufficient_quota", "(429: insufficient_quota); check"),
    ],
)
def test_faults_of_every_request_stop_the_run(fault_of, provider, action, message):
    fault = fault_of(provider, action)
    assert type(fault) is InputError
    assert message.format(provider.upper()) in str(fault)


@pytest.mark.parametrize("fields", [["temperature"], ["temperature", "max_tokens"]])
def test_fields_that_a_model_refuses_are_left_out(provider, fields):
    fields = fields[: 1 + (provider == "openai")]
    with serve(**dict.fromkeys(fields, False)) as server:
        replies = ask(provider, server.url, REQUEST, REQUEST)
        assert [reply.text for reply in replies] == [ANSWER, ANSWER]
        for body in server.bodies[-2:]:
            assert not set(fields) & set(body)
            assert 77 in (body.get("max_tokens"), body.get("max_completion_tokens"))
        assert len(server.bodies) == len(fields) + 2


def test_a_local_server_needs_neither_key_nor_proxy(monkeypatch, provider):
    variable = f"{provider.upper()}_API_KEY"
    for value in ("", " "):
        monkeypatch.setenv(variable, value)
        for url in ("", "https://example.org/v1"):
            with pytest.raises(InputError, match=f"set the environment variable {variable}"):
                Client(provider, "m", base_url=url)
    monkeypatch.delenv(variable)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # where no server listens
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with serve() as server:
        assert ask(provider, "", base_url=f"  {server.url}/v1 ")[0].stop == "end"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"base_url": x}, "not an address") for x in ("ftp://a", "http://a:b", "http://a\x01")),
        ({"base_url": f"http://me:{KEY}@here"}, "base_url holds a name, a password"),
        ({"base_url": f"http://here?key={KEY}"}, "base_url holds a name, a password"),
        ({"OPENAI_API_KEY": f"{KEY}\nx"}, "_API_KEY holds characters that no key may have"),
        ({"ALL_PROXY": "socks5://127.0.0.1:9"}, "^ALL_PROXY: no connection .*socksio"),
        ({"https_proxy": "foo://here"}, "^https_proxy: no connection .* correct or unset it"),
        ({"SSL_CERT_FILE": "nowhere.pem"}, "^SSL_CERT_FILE: no connection"),
        ({"SSLKEYLOGFILE": "/no/keys", "base_url": "http://localhost:1"}, "^SSL.* or SSLKEYLOGF"),
        ({"missing": "openai"}, r"pip install 'fgrlhf_jax\[collect\]'"),
    ],
)
def test_settings_that_allow_no_connection(monkeypatch, options, message):
    url = options.pop("base_url", "")
    if library := options.pop("missing", ""):
        monkeypatch.setitem(sys.modules, library, None)
    for name, value in options.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message) as caught:
        Client("openai", "m", base_url=url)
    assert KEY not in str(caught.value)


def test_only_the_config_sets_the_address(monkeypatch):
    """An environment variable would change replies without a trace in the config."""
    with serve() as server, serve() as other:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", other.url)
        monkeypatch.setenv("OPENAI_BASE_URL", other.url + "/v1")
        for path in ("", "/", "/v1", "/v1/"):
            ask("anthropic", "", base_url=server.url + path)
        ask("openai", "", base_url=server.url + "/v1/")
        assert set(server.paths) == {"/v1/messages", "/v1/chat/completions"}
        assert not other.bodies


def test_a_self_signed_certificate(provider, tmp_path, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -nodes -newkey rsa:2048 -days 2 -subj /CN=localhost"
    command += f" -addext subjectAltName=DNS:localhost -keyout {key} -out {certificate}"
    subprocess.run(command.split(), check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serve() as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        url = f"https://localhost:{server.server_port}"
        (fault,) = ask(provider, url)
        assert "certificate verify failed" in fault
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert ask(provider, url)[0].text == ANSWER
