"""A language model behind a network: a request in, a reply out.

    send = connect("anthropic", "claude-opus-4-5")
    send(Request("Why is the sky blue?")).text

The official clients speak the wire protocols. Retries are in requests.py; here a fault only becomes
one of three: :class:`Transient` (try again), :class:`Refused` (this request only) and InputError
(every request would meet it; the run stops). Keys come from the environment, and no message that
leaves this file holds one.
"""

import dataclasses
import datetime
import email.utils
import importlib
import json
import os
import re
import time
import urllib.parse
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from fgrlhf_jax.errors import InputError

END, LENGTH, REFUSAL = "end", "length", "refusal"  # why a reply stopped

# provider -> (environment variable of the key, address)
PROVIDERS = {
    "anthropic": ("ANTHROPIC_API_KEY", "https://api.anthropic.com"),
    "openai": ("OPENAI_API_KEY", "https://api.openai.com/v1"),
}
_STOPS = {
    **dict.fromkeys(("max_tokens", "model_context_window_exceeded", "length"), LENGTH),
    **dict.fromkeys(("refusal", "content_filter"), REFUSAL),
}


# How servers name the schema that they do not take.
_SCHEMA_REFUSED = re.compile("(?i)response_format|output_config|schema|structured|grammar|guided")


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt. Temperature 0 takes the likeliest tokens, as far as the model allows.

    Attributes:
      schema: a JSON schema that the server holds the reply to, whose text is then one JSON object;
        strict: every property is required and ``additionalProperties`` false. None asks for text.
    """

    prompt: str
    system: str = ""
    max_tokens: int = 1024
    temperature: float = 0.0
    schema: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Reply:
    """The text of a reply, why it stopped (end | length | refusal) and the tokens it took."""

    text: str
    stop: str
    input_tokens: int
    output_tokens: int


Send = Callable[[Request], Reply]


class Transient(Exception):
    """A fault that may be gone next time. retry_after: seconds, where the server gave them."""

    def __init__(self, reason: str, retry_after: float | None = None):
        super().__init__(reason)
        self.retry_after = retry_after


class Refused(Exception):
    """This request gets no reply, however often it is sent; others may."""


def estimate_tokens(text: str) -> int:
    """About how many tokens a text has, without a tokenizer: four bytes a token."""
    return -(-len(text.encode(errors="replace")) // 4)


def connect(provider: str, model: str, *, base_url: str = "", timeout: float = 60.0) -> Send:
    """Returns a function that sends one request a call to ``model``; threads may share it.

    Args:
      provider: "anthropic", or "openai" for every server that speaks its chat completions.
      base_url: another server than the provider's own. One on this machine needs no key.
      timeout: seconds until a reply must be complete.

    The function raises Transient, Refused, or InputError for what every request would meet (a wrong
    key, an unknown model, an empty account). A field that the model does not take is Transient too:
    later requests go without it.

    Raises:
      InputError: for no key, an unusable address, or a client library that is not installed.
    """
    variable, url = PROVIDERS[provider]
    url = check_url(base_url) or url
    key = os.environ.get(variable, "").strip()
    if not (key or _is_local(url)):
        raise InputError(f"{provider} needs a key; set the environment variable {variable}")
    if not key.isascii() or not key.isprintable():
        raise InputError(f"{variable} holds characters that no key has; set it again")
    return _Client(provider, model, url, key, timeout)


class _Client:
    """What :func:`connect` returns; the connections are closed with the object."""

    def __init__(self, provider: str, model: str, url: str, key: str, timeout: float):
        self.provider, self.model, self.url = provider, model, url
        self.key, self.timeout = key, timeout
        self.without: set[str] = set()  # fields that this model turned out not to take
        try:
            self.errors = importlib.import_module(provider)
        except ImportError as error:
            raise InputError(
                f"provider={provider} needs a library; pip install 'fgrlhf_jax[collect]'"
            ) from error
        # By no proxy to this machine.
        direct = {
            "trust_env": False,
            "mounts": dict.fromkeys(("http://", "https://", "all://")),
        }
        http = self.errors.DefaultHttpxClient(**direct if _is_local(url) else {})
        options = {"api_key": key or "none", "timeout": timeout, "http_client": http}
        if provider == "anthropic":
            url = url.removesuffix("/v1")
            api = self.errors.Anthropic(base_url=url, max_retries=0, **options).messages
        else:
            api = self.errors.OpenAI(base_url=url, max_retries=0, **options).chat.completions
        self.create = api.with_streaming_response.create
        weakref.finalize(self, http.close).atexit = False

    def __call__(self, request: Request) -> Reply:
        body = _body(self.provider, self.model, request, self.without)
        try:
            return _reply(self.provider, request, self._fetch(body))
        except (ConnectionError, ValueError) as error:  # of _fetch and of _reply
            fault = Transient(self._redacted(error))
        except self.errors.APITimeoutError:
            fault = Transient(f"no answer within {self.timeout:g} s")
        except self.errors.APIConnectionError as error:
            message = f"no connection to {self.url} ({error.__cause__ or error})"
            fault = Transient(self._redacted(message))
        except self.errors.APIStatusError as error:
            message = self._redacted(f"{error.status_code}: {_message(error)}")
            fault = self._classified(error, message, request.schema is not None)
            if field := _unsupported_field(error.status_code, message, body):
                self.without.add(field)  # the next try, which is counted as one, goes without
                fault = Transient(f"{self.model} takes no {field}")
        raise fault  # outside the handlers: no exception of the client's hangs on it

    def _fetch(self, body: dict) -> bytes:
        """One answer, which must be complete within the timeout."""
        deadline, chunks = time.monotonic() + self.timeout, []
        with self.create(**body) as response:
            try:
                for chunk in response.iter_bytes():
                    chunks.append(chunk)
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"not complete within {self.timeout:g} s")
            except Exception as error:  # the client no longer wraps what its transport raises
                message = f"the answer broke off ({error or type(error).__name__})"
                raise ConnectionError(message) from None
        return b"".join(chunks)

    def _redacted(self, text: Any) -> str:
        """A message of a server or a library as one short line without the key."""
        text = str(text)
        if len(self.key) >= 8:  # shorter keys are placeholders: none, EMPTY, x
            text = text.replace(self.key, "[key]")
        return " ".join(text.split())[:300]

    def _classified(self, error, message: str, with_schema: bool) -> Exception:
        """A status error as one of the three kinds."""
        status = error.status_code
        if status == 402 or re.search("insufficient_quota|credit balance", f"{error.body}"):
            return InputError(
                f"{self.provider}'s account is empty ({message}); top it up and run again"
            )
        if status in (408, 409, 425, 429) or status >= 500:
            return Transient(message, _retry_after(error.response.headers))
        if status in (400, 422) and with_schema and _SCHEMA_REFUSED.search(message):
            return InputError(
                f"{self.model} takes no JSON schema ({message}); set --config.reply_format=text"
            )
        if status in (400, 413, 422):
            return Refused(message)
        fault, advice = f"does not speak {self.provider}'s protocol", "check base_url"
        if status in (401, 403):
            fault = f"does not accept the key in {PROVIDERS[self.provider][0]}"
            advice = "correct it"
        if status == 404:
            fault, advice = (
                f"does not know the model {self.model!r}",
                "check model and base_url",
            )
        return InputError(f"{self.url} {fault} ({message}); {advice}")


def check_url(base_url: str) -> str:
    """``base_url`` without its last slash; raises InputError if it is no plain address."""
    try:
        parts = urllib.parse.urlsplit(base_url)
        _ = parts.port  # raises for one that is no number
        usable = not base_url or (parts.scheme in ("http", "https") and parts.hostname)
    except ValueError:
        usable = False
    if not usable:
        raise InputError("base_url is no address; give http://HOST:PORT/v1 or https://…")
    if parts.username or parts.password or parts.query:
        raise InputError(
            "base_url holds a name, a password or a query; keys come from the environment only"
        )
    return base_url.rstrip("/")


def _is_local(url: str) -> bool:
    return urllib.parse.urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1", "0.0.0.0")


def _body(provider: str, model: str, request: Request, without: set[str]) -> dict:
    messages = [{"role": "user", "content": request.prompt}]
    body: dict[str, Any] = {"model": model, "messages": messages}
    if provider == "anthropic":
        body |= {"system": request.system} if request.system else {}
        body["max_tokens"] = request.max_tokens
        if request.schema is not None:
            output_format = {"type": "json_schema", "schema": request.schema}
            body["output_config"] = {"format": output_format}
    else:
        if request.system:
            messages.insert(0, {"role": "system", "content": request.system})
        field = "max_completion_tokens" if "max_tokens" in without else "max_tokens"
        body[field] = request.max_tokens
        if request.schema is not None:
            schema = {"name": "reply", "strict": True, "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if "temperature" not in without:  # not every release of the clients has the argument
        body["extra_body"] = {"temperature": request.temperature}
    return body


def _unsupported_field(status: int, message: str, body: dict) -> str:
    """The field of ``body`` that the server does not take for this model, "" for none.

    Newer models take no temperature, and max_completion_tokens in place of max_tokens.
    """
    if status == 400 and re.search("(?i)deprecated|support|removed|instead", message):
        if "max_completion_tokens" in message and "max_tokens" in body:
            return "max_tokens"
        if "temperature" in message and "extra_body" in body:
            return "temperature"
    return ""


def _reply(provider: str, request: Request, content: bytes) -> Reply:
    """The reply in an answer; raises ValueError when it has another form."""
    data = None
    try:
        data = json.loads(content)
        usage = data.get("usage") or {}
        if provider == "anthropic":
            text = "".join(b["text"] for b in data["content"] if b["type"] == "text")
            stop = data["stop_reason"]
            inputs = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
            read = sum(usage.get(name) or 0 for name in inputs)
            written = usage.get("output_tokens")
        else:
            choice = data["choices"][0]
            refusal = choice["message"].get("refusal")
            text = refusal or choice["message"].get("content") or ""
            stop = REFUSAL if refusal else choice["finish_reason"]
            read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
        read = int(read or estimate_tokens(request.system + request.prompt))
        written = estimate_tokens(text) if written is None else int(written)
        if not isinstance(text, str):
            raise TypeError("its text is no string")
        # Half of a surrogate pair is valid JSON, and no text that could be written to a file.
        text = text.encode(errors="replace").decode()
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        message = isinstance(data, dict) and data.get("error")
        message = message or f"{type(error).__name__}: {error}"
        raise ValueError(f"the answer is not one of {provider}'s ({message})") from None
    return Reply(text, _STOPS.get(stop, END), read, written)


def _message(error) -> Any:
    """The server's message in a status error of a client."""
    inner = error.body.get("error", error.body) if isinstance(error.body, dict) else error.body
    return inner.get("message", inner) if isinstance(inner, dict) else inner or error.message


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds until the server accepts requests again, None where it does not say."""
    try:
        if "retry-after-ms" in headers:
            seconds = float(headers["retry-after-ms"]) / 1000
        elif re.fullmatch(r"\s*[\d.]+\s*", headers.get("retry-after", "")):
            seconds = float(headers["retry-after"])
        else:
            then = email.utils.parsedate_to_datetime(headers["retry-after"])
            seconds = (then - datetime.datetime.now(datetime.UTC)).total_seconds()
    except (KeyError, ValueError, TypeError):
        return None
    return max(0.0, seconds)
