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
    one = {"instruction": text, "input": "", "output_1": "One.", "output_2": "Two."}
    return {**one, "preference": 2, **fields}


def alpaca_farm(times: int = 1) -> dict[str, list[dict]]:
    """CONFIG/SPLIT of every set, with its fields as they are on the hub, and few rows."""
    sizes = {
        "sft": 3 * times,
        "preference": 4 * times,
        "unlabeled": 5 * times,
        "val": 2 * times,
    }
    sets = {
        f"alpaca_instructions/{split}": [instruction(f"{split} {n}") for n in range(size)]
        for split, size in sizes.items()
    }
    told = {"generator": "text_davinci_003", "dataset": "helpful_base", "datasplit": "eval"}
    return sets | {
        "alpaca_farm_evaluation/eval": [{**instruction("eval"), **told}],
        "alpaca_human_preference/preference": [
            pair(f"human {n}", raw_preference=3) for n in range(2 * times)
        ],
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
    script = {
        "README.md": b"---\nlicense: cc-by-nc-4.0\n---\n",
        "alpaca_farm.py": b"import x\n",
    }
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
        if found := re.fullmatch(rf"/datasets/{NAME}/resolve/([^/]+)/(.+)", path):
            self.file(self.branch(found[1]), unquote(found[2]))
        elif found := re.fullmatch(rf"/api/datasets/{NAME}(?:/revision/(.+))?", path):
            branch = self.branch(found[1] or "main")
            siblings = [{"rfilename": name} for name in self.server.revisions[branch]]
            self.json({"id": NAME, "sha": sha(branch), "siblings": siblings})
        elif found := re.fullmatch(rf"/api/datasets/{NAME}/tree/([^/]+)(?:/(.+))?", path):
            self.json(self.listed(self.branch(found[1]), unquote(found[2] or "")))
        else:
            self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})

    def branch(self, revision: str) -> str:
        named = {sha(branch): branch for branch in self.server.revisions}
        return named.get(revision, unquote(revision))

    def listed(self, branch: str, folder: str) -> list[dict]:
        """What is directly in a folder."""
        found, start = {}, f"{folder}/" if folder else ""
        for path, data in self.server.revisions[branch].items():
            if path.startswith(start):
                name, *deeper = path.removeprefix(start).split("/")
                size = 0 if deeper else len(data)
                item = {"type": "directory" if deeper else "file", "size": size}
                found[name] = item | {"path": start + name, "oid": sha(start + name)}
        return list(found.values())

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
