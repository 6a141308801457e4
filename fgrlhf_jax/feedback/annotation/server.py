"""Serves a gradio page on this machine; other machines reach it only if the user asks for that.

gradio's own launch() is not used: it may open a tunnel, start a Node server, or take another port.
Here uvicorn serves the page on one address, behind a guard: a browser is told to load and to
connect to nothing but this server (Content-Security-Policy), and requests from other sites' pages,
or to another host's name (DNS rebinding), are refused.
"""

import contextlib
import hmac
import os
import socket
import urllib.parse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation.html import STYLE, clean_name
from fgrlhf_jax.feedback.annotation.page import HEAD

if TYPE_CHECKING:
    import gradio

PASSWORD = "FGRLHF_ANNOTATE_PASSWORD"
LOCAL = ("127.0.0.1", "localhost", "::1")
ANY = ("0.0.0.0", "::")
POLICY = (
    # Inline scripts and eval are gradio's own, and its js hooks.
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}


def password() -> str:
    """The password from the environment; "" where none is set."""
    value = os.environ.get(PASSWORD)
    if value is not None and not value.strip():
        raise InputError(f"{PASSWORD} is set but empty; give a password or unset it")
    return value or ""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, so that nobody else takes the port before the page is up.

    Raises:
      InputError: for an address that is not of this machine, or a port that is in use.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(f"host={host}: is no address of this machine ({error})") from error
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
        bound.listen(128)
    except OSError as error:
        bound.close()
        raise InputError(
            f"port={port}: cannot be used on {host} ({error.strerror}); choose another "
            "--config.port, or 0 for any that is free"
        ) from error
    return bound


def serve(page: "gradio.Blocks", bound: socket.socket, *, host: str, password: str) -> None:
    """Serves the page until Ctrl-C.

    Args:
      bound: from :func:`listen`.
      host: the address that it was bound to.
      password: with one, a login asks for it and for the annotator's name.
    """
    import fastapi
    import gradio as gr
    import uvicorn

    def may_log_in(name: str, typed: str) -> bool:
        with contextlib.suppress(InputError):
            clean_name(name)
            return hmac.compare_digest(typed.encode(), password.encode())
        return False

    app = gr.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="/",
        auth=may_log_in if password else None,
        auth_message="Your name, as it is to be written beside your edits, and the password.",
        theme=gr.themes.Default(
            font=["Segoe UI", "Roboto", "Liberation Sans", "sans-serif"],  # no font is loaded
            font_mono=["Menlo", "Liberation Mono", "monospace"],
        ),
        css=STYLE,
        head=HEAD,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        max_file_size=1,
    )
    hosts = () if host in ANY else (*LOCAL, host)
    config = uvicorn.Config(
        guard(app, hosts), log_level="warning", ws="none", timeout_graceful_shutdown=2
    )
    uvicorn.Server(config).run(sockets=[bound])


def guard(app: Callable, hosts: tuple[str, ...]) -> Callable:
    """An ASGI application that answers only requests for these host names from its own pages.

    Args:
      hosts: names that a browser may use for this server; empty allows all.
    """

    from fastapi.datastructures import Headers
    from fastapi.responses import PlainTextResponse

    added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def serve(scope, receive, send):
        async def send_with_headers(message):
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        if scope["type"] != "http":
            await app(scope, receive, send)
        elif _is_allowed(Headers(scope=scope), hosts):
            await app(scope, receive, send_with_headers)
        else:
            refusal = PlainTextResponse("not served to this address", status_code=403)
            await refusal(scope, receive, send_with_headers)

    return serve


def _is_allowed(headers: Mapping[str, str], hosts: tuple[str, ...]) -> bool:
    host, origin = headers.get("host", "").lower(), headers.get("origin")
    try:
        name = urllib.parse.urlsplit(f"//{host}").hostname
        same_origin = origin is None or urllib.parse.urlsplit(origin).netloc.lower() == host
    except ValueError:
        return False
    return same_origin and (not hosts or name in map(str.lower, hosts))
