"""A fake LLM server on this machine with the faults of real networks and providers.

It speaks the Anthropic Messages and OpenAI chat-completions protocols. A plan, a function of the
prompt and of its number of earlier requests, selects the fault, so that results depend neither on
time nor on threads. The server counts completely delivered answers.

    with llm_server.running(plan=llm_server.shaky(0.2)) as server:
        connect("openai", "model", base_url=server.url + "/v1")
"""

import contextlib
import hashlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-ant-0123456789-recognisable"
# Actions that deliver no usable answer; those of others (ok, slow, refusal, …) are counted.
BROKEN = ("truncated", "empty", "html", "error 200", "stream", "blank", "stop error", "thoughts")
FAULTS = (
    *("429", "429 after", "500", "529", "408", "409", "timeout", "drip"),
    *("drop", "reset", "cut", *BROKEN),
)
QUICK = tuple(name for name in FAULTS if name not in ("timeout", "drip", "thoughts"))
Plan = Callable[[str, int], str]


def echo(prompt: str) -> str:
    """The model's default reply."""
    return f"{prompt[::-1]} — ünïcode 🙂"


def shaky(share: float, faults: tuple[str, ...] = QUICK, slow: float = 0.0) -> Plan:
    """A plan: a share of attempts meets one of ``faults``, a share ``slow`` a slow answer."""

    def plan(prompt: str, before: int) -> str:
        digest = hashlib.sha256(repr((prompt, before)).encode()).digest()
        x = int.from_bytes(digest[:7], "big") / 2**56
        if x < share:
            return faults[int(x / share * len(faults))]
        return "slow" if x > 1 - slow else "ok"

    return plan


class Server(ThreadingHTTPServer):
    """The server; counts requests and answers per prompt, and records every attempt."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, plan: Plan, answer: Callable[[str], str], **options):
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan, self.answer = plan, answer
        self.key, self.model = options.get("key"), options.get("model")
        self.not_taken = [name for name, taken in options.items() if taken is False]
        self.stall, self.work = options.get("stall", 30.0), options.get("work", 0.0)
        self.pause, self.body = options.get("pause", "0.002"), options.get("body", "")
        self.received, self.delivered = Counter(), Counter()
        self.bodies, self.times, self.paths = [], [], []
        self.now = self.peak = 0
        self.lock, self.ended = threading.Lock(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # a client that went away


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    slow = False

    def log_message(self, *args):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = body["messages"][-1]["content"]
        server = self.server
        with server.lock:
            before = server.received[prompt]
            server.received[prompt] += 1
            server.bodies.append(body)
            server.paths.append(self.path)
            server.times.append(time.monotonic())
            server.now += 1
            server.peak = max(server.peak, server.now)
        try:
            server.ended.wait(server.work)
            if fault := self.fault(body):
                self.fail(*fault)
            else:
                self.act(server.plan(prompt, before), prompt)
        finally:
            with server.lock:
                server.now -= 1

    def fault(self, body: dict) -> tuple[int, str] | None:
        """Status and message for an invalid request, or None."""
        server = self.server
        key = self.headers.get("x-api-key") or self.headers.get("authorization", "")
        if server.key and not key.endswith(server.key):
            return 401, f"invalid key {key}"  # some servers repeat the key
        if self.path not in ("/v1/messages", "/v1/chat/completions"):
            return 404, "not found"
        if server.model and body["model"] != server.model:
            return 404, f"model: {body['model']} does not exist"
        messages = {
            "temperature": "`temperature` is deprecated for this model.",
            "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. "
            "Use 'max_completion_tokens' instead.",
        }
        return next(((400, messages[name]) for name in server.not_taken if name in body), None)

    def act(self, action: str, prompt: str) -> None:
        data = json.dumps(self.reply(action, prompt)).encode()
        contents = {
            "truncated": data[: len(data) // 2],
            "empty": b"",
            "html": b"<html>Please log in</html>",
            "error 200": b'{"error": {"message": "upstream failed"}}',
            "stream": b"data: " + data.replace(b'"stop"', b"null").replace(b'"end_turn"', b"null"),
            **dict.fromkeys(("blank", "stop error", "thoughts"), data),
        }
        self.slow = action == "slow"
        self.close_connection = action in ("timeout", "drop", "reset", "cut")
        if action[0].isdigit():
            code, _, rest = action.partition(" ")
            after = {"retry-after": self.server.pause} if rest == "after" else {}
            self.fail(int(code), rest or "fault by plan", **after)
        elif action == "timeout":
            self.server.ended.wait(self.server.stall)
        elif action == "drip":  # endless, so that the client times out first
            self.head(len(data) + 10**6)
            while not self.server.ended.wait(0.05):
                self.wfile.write(b" ")
        elif action == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif action == "cut":
            self.head(len(data))
            self.wfile.write(data[: len(data) // 2])
        elif action in contents:
            kind = {"content-type": "text/html"} if action == "html" else {}
            self.send(contents[action], **kind)
        elif action != "drop":
            with self.counted(prompt):
                self.send(self.server.body.encode() if action == "body" else data)

    def reply(self, action: str, prompt: str) -> dict:
        text = "" if action in ("blank", "thoughts") else self.server.answer(prompt)
        cut = "max_tokens" if self.path.endswith("messages") else "length"
        stops = {"length": cut, "thoughts": cut, "stop error": "error"}
        if self.path.endswith("messages"):
            return {
                "content": [{"type": "text", "text": text}] if text else [],
                "stop_reason": (stops | {"refusal": "refusal"}).get(action, "end_turn"),
                "usage": {"input_tokens": len(prompt), "output_tokens": len(text)},
            }
        message = {"role": "assistant", "content": text or None}
        if action == "refusal":
            message |= {"content": None, "refusal": text}
        return {
            "choices": [{"message": message, "finish_reason": stops.get(action, "stop")}],
            "usage": {"prompt_tokens": len(prompt), "completion_tokens": len(text)},
        }

    @contextlib.contextmanager
    def counted(self, prompt: str):
        """Counts an answer before it is written, so that the count is never late."""
        with self.server.lock:
            self.server.delivered[prompt] += 1
        try:
            yield
        except OSError:  # the client has disconnected
            with self.server.lock:
                self.server.delivered[prompt] -= 1
            raise

    def head(self, length: int, code: int = 200, **headers) -> None:
        self.send_response(code)
        headers = {"content-type": "application/json", "content-length": length} | headers
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    def send(self, data: bytes, code: int = 200, **headers) -> None:
        self.head(len(data), code, **headers)
        pieces = [data[n : n + 64] for n in range(0, len(data), 64)] if self.slow else [data]
        for piece in pieces:
            time.sleep(0.002 * self.slow)
            self.wfile.write(piece)

    def fail(self, code: int, message: str, **headers) -> None:
        error = {"type": "error", "error": {"type": "an_error", "message": message}}
        self.send(json.dumps(error).encode(), code, **headers)


@contextlib.contextmanager
def running(
    plan: Plan = lambda prompt, before: "ok", answer: Callable[[str], str] = echo, **options
) -> Iterator[Server]:
    """Runs a server at ``.url`` until the block ends.

    Args:
      plan: action for an attempt, from the prompt and its number of earlier attempts.
      answer: reply to a prompt.
      options: ``key``, ``model``: others are refused; ``temperature=False``, ``max_tokens=False``:
        fields to refuse; ``pause``: Retry-After of "429 after"; ``body``: response of "body";
        ``work``: seconds per answer; ``stall``: seconds until "timeout" hangs up.
    """
    server = Server(plan, answer, **options)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
