"""A fake local Hugging Face hub with the endpoints that `datasets` and `huggingface_hub` use.

A process with `environment(server, home)` reads tatsu-lab/alpaca_farm from it. As on the real hub,
its main branch has a loading script, and another branch has the Parquet files.
"""

import base64
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
    """CONFIG/SPLIT → a few rows, with the fields of the real data set."""
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
def serve(token: str = ""):
    """Runs the hub; with a ``token`` it starts empty and accepts uploads with that token."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.token, server.private, server.blobs, server.faults = token, set(), {}, {}
    server.repos = {} if token else {f"datasets/{NAME}": revisions()}
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Hub(http.server.BaseHTTPRequestHandler):
    """The request handler; ``server.faults`` maps a part of a path to an error status."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urlsplit(self.path).path
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            files = self.repo(f"{match[1] or 'models/'}{match[2]}")
            self.file(files, self.branch(files, match[3]), unquote(match[4]))
        elif match := re.fullmatch(r"/api/(\w+/[^/]+/[^/]+)(?:/revision/(.+))?", path):
            files = self.repo(match[1])
            branch = self.branch(files, match[2] or "main")
            siblings = [{"rfilename": name} for name in files.get(branch, ())]
            info = {"id": match[1].partition("/")[2], "private": match[1] in self.server.private}
            known = branch in files
            self.json(info | {"sha": sha(branch), "siblings": siblings}) if known else self.refuse()
        elif match := re.fullmatch(r"/api/(\w+/[^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?", path):
            files = self.repo(match[1])
            branch = self.branch(files, match[2])
            deep = "recursive=true" in self.path.lower()
            self.json(self.items(files[branch], unquote(match[3] or ""), deep))
        else:
            self.refuse()

    def do_POST(self):
        path, body = urlsplit(self.path).path, self.rfile.read(int(self.headers["Content-Length"]))
        fault = next((s for part, s in self.server.faults.items() if part in path), None)
        if self.headers["Authorization"] != f"Bearer {self.server.token}":
            fault = 401
        if fault:
            self.answer(fault, b"", {})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('type') or 'model'}s/{asked['organization']}/{asked['name']}"
            address = f"http://{self.headers['Host']}/{asked['organization']}/{asked['name']}"
            exists = name in self.server.repos
            if not exists and (asked.get("private") or asked.get("visibility") == "private"):
                self.server.private.add(name)
            self.server.repos.setdefault(name, {"main": {}})
            self.json({"url": address}, 409 if exists else 200)
        elif path == "/api/validate-yaml":
            self.json({"errors": [], "warnings": []})
        elif path.endswith("/objects/batch"):
            missing = [o for o in json.loads(body)["objects"] if o["oid"] not in self.server.blobs]
            here = f"http://{self.headers['Host']}/blobs"
            actions = [{"actions": {"upload": {"href": f"{here}/{o['oid']}"}}} for o in missing]
            pairs = zip(missing, actions, strict=True)
            self.json({"transfer": "basic", "objects": [o | action for o, action in pairs]})
        elif match := re.fullmatch(r"/api/(\w+/[^/]+/[^/]+)/(\w+)/(.+)", path):
            self.change(match[1], match[2], unquote(match[3]), body)

    def change(self, repo: str, action: str, branch: str, body: bytes) -> None:
        """Creates a branch, answers a preupload request, or commits files."""
        files = self.server.repos[repo]
        if action == "branch":
            files.setdefault(branch, dict(files["main"]))
        elif action == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {True: "lfs", False: "regular"}
            sent = [{"path": n, "uploadMode": modes[n.endswith(".safetensors")]} for n in names]
            self.json({"files": [file | {"shouldIgnore": False} for file in sent]})
            return
        else:
            for line in map(json.loads, body.splitlines()):
                key, value = line["key"], line["value"]
                if key == "deletedFile":
                    del files[branch][value["path"]]
                elif key == "lfsFile":
                    files[branch][value["path"]] = self.server.blobs[value["oid"]]
                elif key == "file":
                    files[branch][value["path"]] = base64.b64decode(value["content"])
        url = f"http://{self.headers['Host']}/{repo.removeprefix('models/')}/commit/{sha(branch)}"
        self.json({"commitUrl": url, "commitOid": sha(branch)})

    def do_PUT(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.blobs[self.path.rpartition("/")[2]] = data
        self.answer(200, b"", {})

    def repo(self, name: str) -> dict:
        return self.server.repos.get(name, {})

    def branch(self, files: dict, revision: str) -> str:
        branches = {sha(branch): branch for branch in files}
        return branches.get(revision, unquote(revision))

    def items(self, files: dict[str, bytes], folder: str, deep: bool = False) -> list[dict]:
        """The items of a folder, with ``deep`` also those of its subfolders."""
        items, start = {}, f"{folder}/" if folder else ""
        for path, data in files.items():
            if path.startswith(start):
                name, *deeper = path.removeprefix(start).split("/")
                name, deeper = (path, []) if deep else (name, deeper)
                kind, size = ("directory", 0) if deeper else ("file", len(data))
                item = {"type": kind, "size": size, "oid": sha(start + name)}
                items[name] = item | {"path": name if deep else start + name}
        return list(items.values())

    def file(self, files: dict, branch: str, path: str) -> None:
        data = files.get(branch, {}).get(path)
        head = {"X-Repo-Commit": sha(branch)}
        if not files:
            self.refuse()
        elif data is None:
            self.answer(404, b"", head | {"X-Error-Code": "EntryNotFound"})
        else:
            self.answer(200, data, head | {"ETag": f'"{sha(path)}"'})

    def refuse(self) -> None:
        self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})

    def json(self, value, status: int = 200) -> None:
        self.answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def sha(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()
