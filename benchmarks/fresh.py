"""Shared by the benchmark commands: options, and measurements in fresh processes."""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime.files import read_json

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "benchmarks" / "cache"


def parse_options(
    doc: str, argv: Sequence[str], parts: Sequence[str], **others: Any
) -> argparse.Namespace:
    """The options ``--json``, ``--only``, ``--size`` and ``others`` of a command.

    Args:
      doc: docstring of the command; its second paragraph is the usage.
      parts: valid names in ``--only``; by default all of them.
      others: defaults of further options, by name.

    Raises:
      InputError: for an unknown part, or without a file for the results.
    """
    usage = doc.split("\n\n")[1]
    parser = argparse.ArgumentParser(usage.split()[2], usage=usage, allow_abbrev=False)
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    for name, default in ({"json": "", "only": ",".join(parts)} | others).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    options = parser.parse_args(argv)
    options.only = choose("only", options.only, parts)
    if not options.json:
        raise InputError("json is empty; give --json=FILE for the results")
    return options


def choose(name: str, text: str, known: Sequence[str]) -> list[str]:
    """Splits a comma-separated option; raises InputError for unknown values."""
    values = text.split(",")
    if unknown := [value for value in values if value not in known]:
        raise InputError(f"{name}={unknown[0]}: is not one of {', '.join(known)}")
    return values


def read_results(path: str) -> dict:
    """The results already in a file, or {}; they are kept."""
    return read_json(path, {}, "choose another file") if Path(path).exists() else {}


def run(command: Sequence[str], job: Any, limit: float, *, ours: bool = True) -> dict:
    """Runs ``command JOB.json RESULT.json`` and returns its result.

    Args:
      limit: seconds after which the process is killed.
      ours: whether this project's modules are on its path.

    Raises:
      RuntimeError: with the last lines of output, if it fails or exceeds the limit.
    """
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")] if ours else []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "compiled"))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("job.json", "result.json")]
        files[0].write_text(json.dumps(job))
        log = Path(folder) / "log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [*command, *map(str, files)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
            try:
                status = process.wait(limit)
            except subprocess.TimeoutExpired:
                status = f"more than {limit:g} s"
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        if status != 0 or not files[1].exists():
            last = log.read_text(errors="replace").strip().splitlines()[-12:]
            raise RuntimeError("\n  ".join([f"failed ({status}):", *last]))
        return json.loads(files[1].read_text())


def check_seconds(result: dict) -> None:
    """Raises RuntimeError if a measured time is not positive and finite."""
    if not all(math.isfinite(s) and s > 0 for s in result["seconds"]):
        raise RuntimeError(f"seconds={result['seconds']} is no measurement")


def exit_with_status(main: Callable[[], bool | None]) -> None:
    """Runs a command; exit status 1 for False or failure, 2 for bad input, 130 for Ctrl-C.

    SIGTERM is treated like Ctrl-C, so that no measured process outlives the command.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if main() is False:
            sys.exit(1)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; finished items, if any, are in the file of --json", file=sys.stderr)
        sys.exit(130)
