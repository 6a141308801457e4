"""Sends requests to a model's API: ``reply = await Client("openai", model)(Request(prompt))``.

The official client libraries implement the protocols and retry after errors. Keys come from the
environment and are removed from all messages.
"""

import asyncio
import contextlib
import dataclasses
import email.utils
import importlib
import os
import re
import ssl
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.llm.answers import END, LENGTH, REFUSAL, parse_answer

LONGEST_PAUSE = 120.0  # seconds; if a server asks for more, the run stops
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1", "0.0.0.0")

# provider -> (environment variable of the key, address, the official client)
PROVIDERS = {
    "anthropic": ("ANTHROPIC_API_KEY", "https://api.anthropic.com", "AsyncAnthropic"),
    "openai": ("OPENAI_API_KEY", "https://api.openai.com/v1", "AsyncOpenAI"),
}
# Environment variables, in lower or upper case.
_PROXIES = ("all_proxy", "http_proxy", "https_proxy")
_CERTIFICATES = ("ssl_cert_file", "sslkeylogfile")
_ACCOUNT_EMPTY = re.compile("insufficient_quota|credit balance")
# What a message about an unsupported schema, or an unsupported field, contains.
_SCHEMA = re.compile("(?i)response_format|output_config|schema|structured|grammar|guided")
_UNSUPPORTED = re.compile("(?i)deprecated|support|removed|instead")


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt. Temperature 0 asks for greedy decoding, which some models do not offer."""

    prompt: str
    max_tokens: int = 1024
    temperature: float = 0.0
    schema: Mapping[str, Any] | None = None  # a strict JSON schema of the reply; None asks for text


class Reply(NamedTuple):
    """A text, its stop reason (end | length | refusal, or an error message) and token counts."""

    text: str
    stop: str
    input_tokens: int
    output_tokens: int


class Rejected(NamedTuple):
    """The reason why a request can never succeed, so that it is not sent again."""

    reason: str


Outcome = Reply | Rejected | str  # str: the message of a temporary error


def find_fault(reply: Reply) -> str:
    """Returns why a reply is unusable, "" if it is usable."""
    if reply.stop not in (END, LENGTH, REFUSAL):
        return reply.stop
    if reply.text.strip() or reply.stop == REFUSAL:
        return ""
    if reply.stop == LENGTH:
        return "the reply has only reasoning and no text; raise max_new_tokens"
    return "the reply is empty"


def estimate_tokens(text: str) -> int:
    """Estimates the number of tokens of a text, at four bytes per token."""
    return -(-len(text.encode(errors="replace")) // 4)


class Client:
    """An async function from a Request to its outcome, for one event loop; end with ``aclose``.

    Args:
      provider: "anthropic", or "openai" for every server with its chat completions API.
      base_url: another server than the provider's own. One on this machine needs no key.
      timeout: seconds in which the answer to one try must be complete.
      retries: retries of the official client; ``before_retry`` is awaited before each.

    Raises InputError for a missing key or library, an unusable address, proxy or certificate. A
    call raises it if all requests would fail: a wrong key, an unknown model, an empty account.
    """

    def __init__(self, provider, model, *, base_url="", timeout: float = 60, retries: int = 6):
        variable, url, api = PROVIDERS[provider]
        self.url = check_url(base_url) or url
        self.key = os.environ.get(variable, "").strip()
        self.direct = urllib.parse.urlsplit(self.url).hostname in LOCAL_HOSTS  # without a proxy
        if not (self.key or self.direct):
            raise InputError(f"{provider} needs a key; set the environment variable {variable}")
        if not self.key.isascii() or not self.key.isprintable():
            raise InputError(f"{variable} holds characters that no key may have; set it again")
        self.provider, self.model, self.timeout = provider, model, timeout
        self.before_retry: Callable[[], Awaitable[None]] = lambda: asyncio.sleep(0)
        self.without: set[str] = set()  # fields that the server rejected for this model
        try:
            self.sdk, self.httpx = map(importlib.import_module, (provider, "httpx2"))
        except ImportError as error:
            raise InputError(
                f"provider={provider} needs a library ({error}); pip install 'fgrlhf_jax[collect]'"
            ) from error
        options = {"api_key": self.key or "none", "timeout": timeout, "max_retries": retries}
        options["http_client"] = _build_http_client(self)
        url = self.url.removesuffix("/v1") if provider == "anthropic" else self.url
        try:
            self.api = getattr(self.sdk, api)(base_url=url, **options)
        except Exception as error:  # an invalid address
            raise InputError(f"base_url is not an address ({self._redacted(error)})") from None

    async def aclose(self) -> None:
        await self.api.close()

    async def __call__(self, request: Request) -> Outcome:
        resource = self.api.chat.completions if self.provider == "openai" else self.api.messages
        body = _body(self.provider, self.model, request, self.without)
        try:
            answer = await resource.with_raw_response.create(**body)
            content = answer.http_response.content
            text, stop, read, written = parse_answer(self.provider, content, request.max_tokens)
            read = read or estimate_tokens(request.prompt)
            written = estimate_tokens(text) if written is None else written
            return Reply(text, self._redacted(stop), read, written)
        except ValueError as error:  # a prompt that cannot be encoded
            return Rejected(self._redacted(error))
        except self.sdk.APIConnectionError as error:
            if isinstance(error, self.sdk.APITimeoutError):
                return f"no complete answer within {self.timeout:g} s"
            cause = error.__cause__ or error
            proxies = () if self.direct else _names_set(_PROXIES)
            via = f" by {', '.join(proxies)}" * bool(proxies)
            return self._redacted(f"no connection to {self.url}{via} ({cause or type(cause)})")
        except self.sdk.APIStatusError as error:
            outcome = self._classified(error, body)
        if isinstance(outcome, InputError):
            raise outcome  # outside the handler: without the client's error as its context
        if outcome is not None:
            return outcome
        await self.before_retry()
        return await self(request)

    def _redacted(self, text: Any) -> str:
        """Returns a message of a server or a library as one short line without the key."""
        text = str(text)
        if len(self.key) >= 8:  # shorter keys are placeholders: none, EMPTY, x
            text = text.replace(self.key, "[key]")
        return " ".join(text.split())[:300]

    def _classified(self, error, body: dict) -> Rejected | str | InputError | None:
        """Returns what a status error means; None to send the request again without a field."""
        status, pause = error.status_code, _pause(error.response.headers)
        inner = error.body.get("error", error.body) if isinstance(error.body, dict) else error.body
        text = inner.get("message", inner) if isinstance(inner, dict) else inner or error.message
        message = self._redacted(f"{status}: {text}")
        if status == 400 and _UNSUPPORTED.search(message):
            # Newer models accept no temperature, and max_completion_tokens, not max_tokens.
            fields = {"max_tokens": "max_completion_tokens", "extra_body": "temperature"}
            for field, name in fields.items():
                if field in body and name in message:
                    return self.without.add(field)
        if status in (408, 409, 425, 429) or status >= 500:
            if pause <= LONGEST_PAUSE and not _ACCOUNT_EMPTY.search(f"{error.body}"):
                return message
            message += f", and wants a pause of {pause:.0f} s" * bool(pause)
        elif {"response_format", "output_config"} & set(body) and _SCHEMA.search(message):
            return InputError(
                f"{self.model} does not support schemas ({message}); set --config.reply_format=text"
            )
        elif status in (400, 413, 422) and not _ACCOUNT_EMPTY.search(message):
            return Rejected(message)
        to_check = f"{PROVIDERS[self.provider][0]}, its account, base_url, and model={self.model}"
        return InputError(f"{self.url} refuses every request ({message}); check {to_check}")


def _build_http_client(client: Client):
    """Returns the official client's HTTP client, with ``before_retry`` and a timeout per try.

    It does not retry if the server asks for more than LONGEST_PAUSE or the account has no credit.
    """

    class Http(client.sdk.DefaultAsyncHttpxClient):
        async def send(self, request, **options):
            if request.headers.get("x-stainless-retry-count", "0") != "0":
                await client.before_retry()
            try:
                async with asyncio.timeout(client.timeout):
                    response = await super().send(request, **options)
            except TimeoutError as error:
                raise client.httpx.ReadTimeout("no complete answer", request=request) from error
            headers, pause = response.headers, _pause(response.headers)
            if "retry-after" in headers:
                headers["retry-after"] = str(pause)
            empty = response.status_code == 429 and _ACCOUNT_EMPTY.search(response.text)
            if pause > LONGEST_PAUSE or empty:
                headers["x-should-retry"] = "false"
            return response

    try:
        if client.direct:
            return Http(trust_env=False, verify=ssl.create_default_context())
        return Http()
    except Exception as error:
        names = _names_set(_CERTIFICATES if isinstance(error, OSError) else _PROXIES)  # from ssl
        raise InputError(
            f"{' or '.join(names)}: no connection can be made with that of the environment "
            f"({client._redacted(error)}); correct or unset it"
        ) from None


def _names_set(variables: Sequence[str]) -> list[str]:
    """Returns the variables set in the environment, spelt as there (lower or upper case)."""
    return [name for name, value in os.environ.items() if name.lower() in variables and value]


def _pause(headers: Mapping[str, str]) -> float:
    """Returns the seconds of a Retry-After (for a date, from the answer's date); 0 for none."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        with contextlib.suppress(ValueError):
            return max(0.0, float(headers.get(name, "")) / unit)
    dates = headers.get("retry-after", ""), headers.get("date", email.utils.formatdate(usegmt=True))
    with contextlib.suppress(TypeError, ValueError):
        then, now = map(email.utils.parsedate_to_datetime, dates)
        return max(0.0, (then - now).total_seconds())
    return 0.0


def check_url(base_url: str) -> str:
    """Returns a base_url without blanks and slashes at its end; raises InputError if invalid."""
    base_url = base_url.strip()
    try:
        parts = urllib.parse.urlsplit(base_url or PROVIDERS["openai"][1])
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # for example, a port that is not a number
        usable = False
    if not usable or len(base_url.split()) > 1:
        raise InputError("base_url is not an address; give http://HOST:PORT/v1 or https://…")
    if parts.username or parts.password or parts.query:
        raise InputError(
            "base_url holds a name, a password or a query; keys come from the environment only"
        )
    return base_url.rstrip("/")


def _body(provider: str, model: str, request: Request, without: set[str]) -> dict:
    body: dict[str, Any] = {"model": model}
    body["messages"] = [{"role": "user", "content": request.prompt}]
    body["max_completion_tokens" if "max_tokens" in without else "max_tokens"] = request.max_tokens
    if "extra_body" not in without:  # some releases of the clients lack a temperature
        body["extra_body"] = {"temperature": request.temperature}
    if request.schema and provider == "anthropic":
        body["output_config"] = {"format": {"type": "json_schema", "schema": request.schema}}
    elif request.schema:
        schema = {"name": "reply", "strict": True, "schema": request.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body
