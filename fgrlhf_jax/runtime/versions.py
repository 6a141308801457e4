"""Provenance of a result: versions, command, commit of the checkout, hardware."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import jax


def describe_versions() -> str:
    """Such as ``fgrlhf_jax 0.3.0, jax 0.10.2, flax 0.12.7, Python 3.11.9``."""
    packages = []
    for name in ("fgrlhf_jax", "jax", "flax"):
        try:
            packages.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:  # run from a checkout, not installed
            packages.append(name)
    return ", ".join([*packages, f"Python {platform.python_version()}"])


def describe_command() -> str:
    """The command of this process, without run_dir and flags that differ between hosts."""
    program, per_host = Path(sys.argv[0]), ("run_dir", "coordinator", "num_processes", "process_id")
    module = ["-m", f"launch.{program.stem}"] if program.parent.name == "launch" else [program.name]
    flags = [
        word
        for word in sys.argv[1:]
        if not word.startswith(tuple(f"--config.{name}=" for name in per_host))
    ]
    return shlex.join(["python", *module, *flags])


def describe_commit() -> str:
    """The Git commit of the package's checkout, marked if "(modified)"; "" without a checkout."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return ""
    try:
        commit, status = (
            subprocess.run(
                ["git", "-C", str(folder), *args], capture_output=True, text=True, check=True
            ).stdout.strip()
            for args in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.CalledProcessError):  # no git, or another user's checkout
        return ""
    return f"{commit} (modified)" if status else commit


def describe_devices() -> str:
    """Such as ``2 CPU cores`` or ``8 × NVIDIA H200``: the devices of all processes."""
    devices = jax.devices()
    if devices[0].platform == "cpu":
        cores = count_cores()
        return f"{cores} CPU core{'' if cores == 1 else 's'}"
    return f"{len(devices)} × {devices[0].device_kind}"


def count_cores() -> int:
    """Number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
