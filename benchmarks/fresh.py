"""What the commands share: their options, and a process of its own for each measurement."""

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
      doc: of the command; its second paragraph says how it is used.
      parts: what ``--only`` may name; all of them unless it is given.
      others: defaults by name.

    Raises:
      InputError: for an unknown part, and where there is no file for the results.
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
    """What an option names, separated by commas; raises InputError for what is not known."""
    values = text.split(",")
    if unknown := [value for value in values if value not in known]:
        raise InputError(f"{name}={unknown[0]}: is not one of {', '.join(known)}")
    return values


def read_results(path: str) -> dict:
    """What a file of results has already, which stays."""
    return read_json(path, {}, "choose another file") if Path(path).exists() else {}


def run(command: Sequence[str], job: Any, limit: float, *, ours: bool = True) -> dict:
    """What ``command JOB.json RESULT.json`` wrote; it is ended with this process or at the limit.

    Args:
      limit: seconds.
      ours: whether it finds our modules.

    Raises:
      RuntimeError: with the last lines that it said, where it fails or takes longer.
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
    """Raises RuntimeError where what was timed took no time."""
    if not all(math.isfinite(s) and s > 0 for s in result["seconds"]):
        raise RuntimeError(f"seconds={result['seconds']} is no measurement")


def exit_with_status(main: Callable[[], bool | None]) -> None:
    """Runs a command: status 1 where it says False or fails, 2 for bad input, 130 for Ctrl-C."""
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
        print("interrupted; what was measured is in the file of --json", file=sys.stderr)
        sys.exit(130)
