"""A hub on this machine: what `datasets` and `huggingface_hub` ask of the real one.

A process with `environment(server, home)` reads tatsu-lab/alpaca_farm from it. As there, the main
branch has a loading script, and the Parquet files are in a branch of their own.
"""

import contextlib
import hashlib
import http.server
import io
import json
import os
import re
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow
import pyarrow.parquet

NAME = "tatsu-lab/alpaca_farm"


def instruction(text: str) -> dict:
    return {"instruction": text, "input": "", "output": f"{text}: yes."}


def pair(text: str, **fields) -> dict:
    texts = {"instruction": text, "input": "", "output_1": "One.", "output_2": "Two."}
    return {**texts, "preference": 2, **fields}


def alpaca_farm(times: int = 1) -> dict[str, list[dict]]:
    """CONFIG/SPLIT of every set, with its fields as they are on the hub, and few rows."""
    sizes = {"sft": 3, "preference": 4, "unlabeled": 5, "val": 2}
    sets = {
        f"alpaca_instructions/{split}": [instruction(f"{split} {n}") for n in range(size * times)]
        for split, size in sizes.items()
    }
    source = {"generator": "text_davinci_003", "dataset": "helpful_base", "datasplit": "eval"}
    humans = [pair(f"human {n}", raw_preference=3) for n in range(2 * times)]
    return sets | {
        "alpaca_farm_evaluation/eval": [instruction("eval") | source],
        "alpaca_human_preference/preference": humans,
        "alpaca_gpt4_preference/preference": [pair("gpt4")],
        "alpaca_noisy_multi_preference/preference": [pair("noisy")],
    }


def parquet(rows: list[dict]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def revisions() -> dict[str, dict[str, bytes]]:
    """Branch -> path -> content."""
    files = {f"{path}/0000.parquet": parquet(rows) for path, rows in alpaca_farm().items()}
    card = b"---\nlicense: cc-by-nc-4.0\n---\n"
    script = {"README.md": card, "alpaca_farm.py": b"import x\n"}
    return {"main": script, "refs/convert/parquet": files}


def environment(server, home: Path) -> dict[str, str]:
    hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(home)}
    quiet = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    return {**os.environ, **hub, **quiet}


@contextlib.contextmanager
def serve():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.revisions = revisions()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urlsplit(self.path).path
        if match := re.fullmatch(rf"/datasets/{NAME}/resolve/([^/]+)/(.+)", path):
            self.file(self.branch(match[1]), unquote(match[2]))
        elif match := re.fullmatch(rf"/api/datasets/{NAME}(?:/revision/(.+))?", path):
            branch = self.branch(match[1] or "main")
            siblings = [{"rfilename": name} for name in self.server.revisions[branch]]
            self.json({"id": NAME, "sha": sha(branch), "siblings": siblings})
        elif match := re.fullmatch(rf"/api/datasets/{NAME}/tree/([^/]+)(?:/(.+))?", path):
            self.json(self.items(self.branch(match[1]), unquote(match[2] or "")))
        else:
            self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})

    def branch(self, revision: str) -> str:
        branches = {sha(branch): branch for branch in self.server.revisions}
        return branches.get(revision, unquote(revision))

    def items(self, branch: str, folder: str) -> list[dict]:
        """What is directly in a folder."""
        items, start = {}, f"{folder}/" if folder else ""
        for path, data in self.server.revisions[branch].items():
            if path.startswith(start):
                name, *deeper = path.removeprefix(start).split("/")
                kind, size = ("directory", 0) if deeper else ("file", len(data))
                item = {"type": kind, "size": size, "oid": sha(start + name)}
                items[name] = item | {"path": start + name}
        return list(items.values())

    def file(self, branch: str, path: str) -> None:
        data = self.server.revisions[branch].get(path)
        head = {"X-Repo-Commit": sha(branch)}
        if data is None:
            self.answer(404, b"", head | {"X-Error-Code": "EntryNotFound"})
        else:
            self.answer(200, data, head | {"ETag": f'"{sha(path)}"'})

    def json(self, value) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def sha(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()
