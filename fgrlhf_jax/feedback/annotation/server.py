"""Serves the annotation page, by default only to this machine.

There is one page, with its style and script in it, and one address for its actions, so that it
works under any path. The Content-Security-Policy allows no other scripts and connections.
Requests from pages of other sites, or with another host name (DNS rebinding), are refused, except
for those through the proxy of ``root_path``.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import os
import socket
import sys
import unicodedata
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation.page import LISTED, LONGEST, TEMPLATES, Page
from fgrlhf_jax.report.html import ENVIRONMENT

LONGEST_NAME = 60
PASSWORD = "FGRLHF_ANNOTATE_PASSWORD"
LOCAL = ("127.0.0.1", "localhost", "::1")
ANY = ("0.0.0.0", "::")
HEARTBEAT = 20.0  # maximal seconds between two pings of a tab
BEHIND_A_PROXY = (
    "If a proxy passes the page on, start it with --config.root_path=https://HOST/PATH, "
    "as people's browsers show it."
)
LARGEST = 12 * LONGEST + 100_000  # maximal bytes of a request: a character takes up to 12 as JSON


def password() -> str:
    """Returns the password in the environment, "" if unset; raises InputError if it is empty."""
    value = os.environ.get(PASSWORD)
    if value is not None and not value.strip():
        raise InputError(f"{PASSWORD} is set but empty; give a password or unset it")
    return value or ""


def listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket; raises InputError if the host or port cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except socket.gaierror as error:
        raise InputError(f"host={host}: is not an address of this machine ({error})") from error
    except OSError as error:
        raise InputError(
            f"port={port}: cannot be used on {host} ({os.strerror(error.errno)}); choose another "
            "--config.port, or 0 for any that is free"
        ) from error


def read_guidelines(path: str) -> str:
    """Returns the HTML of a Markdown file, with HTML in it escaped; "" for no file."""
    if not path:
        return ""
    from markdown_it import MarkdownIt

    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"guidelines={path}: cannot be read ({error}); give a FILE.md") from error
    return MarkdownIt("commonmark", {"html": False}).enable("table").render(text)


def clean_name(text: str) -> str:
    """Normalizes an annotator's name; raises InputError if it is empty, too long or unprintable."""
    name = " ".join(unicodedata.normalize("NFC", text or "").split())
    if not name:
        raise InputError("give your name: it is written beside every edit that you make")
    if len(name) > LONGEST_NAME or any(unicodedata.category(c).startswith("C") for c in name):
        raise InputError(f"give a name of at most {LONGEST_NAME} visible characters")
    return name


def known_name(name: str, known: Sequence[str]) -> str:
    """Returns the known name that differs only in case and blanks; "" for a new name."""
    folded = ["".join(unicodedata.normalize("NFKC", n).casefold().split()) for n in (name, *known)]
    return known[folded.index(folded[0], 1) - 1] if folded[0] in folded[1:] else ""


class App:
    """The ASGI application; ``guidelines`` are HTML, ``root_path`` is the proxy's address or ""."""

    def __init__(self, page: Page, *, host: str, root_path: str, password: str, guidelines: str):
        root = urllib.parse.urlsplit(root_path)
        self.page, self.password = page, password
        self.root, self.proxy = root.path.rstrip("/"), root.netloc.lower()
        self.hosts = () if host in ANY else {*LOCAL, host.lower(), root.hostname or host.lower()}
        self.guessing = asyncio.Lock()
        self.key = hashlib.scrypt(password.encode(), salt=b"annotate", n=2**14, r=8, p=1)
        assets = Path(__file__).with_name("assets")
        style, script = ((assets / f"page.{kind}").read_text() for kind in ("css", "js"))
        digests = [hashlib.sha256(text.encode()).digest() for text in (style, script)]
        style_digest, script_digest = (f"'sha256-{base64.b64encode(d).decode()}'" for d in digests)
        self.source = ENVIRONMENT.get_template(f"{TEMPLATES}/page.html").render(
            root=self.root,
            style=style,
            script=script,
            guidelines=guidelines,
            password=bool(password),
            limit=page.limit,
            ping=min(HEARTBEAT, max(0.5, page.store.release_after / 3)),
        )
        self.headers = {
            "content-security-policy": f"default-src 'none'; connect-src 'self'; "
            f"img-src 'self' data:; style-src {style_digest}; script-src {script_digest}; "
            "base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
            "referrer-policy": "same-origin",
            "x-content-type-options": "nosniff",
            "cache-control": "no-store",
        }

    async def __call__(self, scope, receive, send) -> None:
        from starlette.requests import ClientDisconnect, Request

        try:
            response = await self.respond(Request(scope, receive))
        except ClientDisconnect:
            return
        response.headers.update(self.headers)
        await response(scope, receive, send)

    async def respond(self, request):
        from starlette import background, responses

        path = request.url.path.removeprefix(self.root)
        if refusal := self.refusal(request.headers):
            return responses.PlainTextResponse(refusal, status_code=403)
        if path == "" and request.method == "GET":
            return responses.RedirectResponse(f"{self.root}/")
        if path == "/" and request.method in ("GET", "HEAD"):
            return responses.HTMLResponse(self.source)
        if path != "/act" or request.method != "POST":
            message = f"There is nothing at {path:.60}: the page is at {self.root}/."
            return responses.PlainTextResponse(f"{message} {BEHIND_A_PROXY}", status_code=404)
        try:
            answer = await self.act(request)
        except InputError as error:
            answer = {"message": f"{error}.", "wrong": True}
        task = background.BackgroundTask(self.write_edits)
        return responses.JSONResponse(answer, background=task)

    def write_edits(self) -> None:
        try:
            self.page.store.write_edits()
        except InputError as error:
            print(f"warning: {error}", file=sys.stderr, flush=True)

    def refusal(self, headers: Mapping[str, str]) -> str:
        """Returns why a request is refused and what to do; "" if it is accepted."""
        host, origin = headers.get("host", "").lower(), headers.get("origin")
        try:
            name = urllib.parse.urlsplit(f"//{host}").hostname or ""
            source = host if origin is None else urllib.parse.urlsplit(origin).netloc.lower()
        except ValueError:
            name = source = ""
        if (not self.hosts or name in self.hosts) and source in (host, self.proxy) and source:
            return ""
        return f"{BEHIND_A_PROXY} It is not served under {(origin or f'http://{host}')[:100]}."

    async def act(self, request) -> dict[str, Any]:
        from starlette.concurrency import run_in_threadpool

        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > LARGEST:
                too_long = f"the text is too long; {LONGEST} characters are the most"
                raise InputError(f"not saved: {too_long}")
        try:
            data = json.loads(body)
            action = data["action"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError("the server cannot read this request; reload the page") from error
        if action == "enter":
            return await self.enter(data)
        name, _, signature = request.headers.get("authorization", "").rpartition(" ")
        name = urllib.parse.unquote(name)
        if not hmac.compare_digest(signature.encode(), self.sign(name).encode()):
            return {"enter": True, "message": "Give your name once more.", "wrong": False}
        return await run_in_threadpool(self.page.act, name, data)

    async def enter(self, data: Mapping) -> dict[str, Any]:
        """Returns a token, or asks to confirm a new name; allows one wrong password a second."""
        name = clean_name(str(data.get("name", "")))
        if self.guessing.locked():
            raise InputError("somebody gave a wrong password just now; try again in a second")
        async with self.guessing:
            typed = str(data.get("password", ""))
            if not hmac.compare_digest(typed.encode(errors="replace"), self.password.encode()):
                await asyncio.sleep(1)
                raise InputError("that is not the password")
        known = self.page.store.annotators()
        spelling = known_name(name, known)
        if known and not spelling and data.get("new") is not True:
            names = ", ".join(known[:LISTED]) + (", …" if len(known) > LISTED else "")
            message = f"{name} is new here. If that is right, press Start again. So far: {names}."
            return {"new": True, "message": message}
        name = spelling or name
        return {"token": f"{urllib.parse.quote(name)} {self.sign(name)}", "message": ""}

    def sign(self, name: str) -> str:
        return hmac.new(self.key, name.encode(), "sha256").hexdigest()


def serve(app: Callable, bound: socket.socket) -> None:
    """Serves an ASGI application until Ctrl-C, on a socket of :func:`listen`."""
    import uvicorn

    options = {"log_level": "warning", "ws": "none", "lifespan": "off", "proxy_headers": False}
    config = uvicorn.Config(app, **options, timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[bound])
