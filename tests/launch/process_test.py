"""What a command sets for its process."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch.shared import process

CODE = """
from launch.shared import process
process.begin()
process.prepare()
import re, jax.numpy as jnp
address, smaps = jnp.ones((1024, 1024)).unsafe_buffer_pointer(), open("/proc/self/smaps").read()
for low, high, flags in re.findall(r"(?ms)^([0-9a-f]+)-([0-9a-f]+) .*?^VmFlags: (.*?)$", smaps):
    if int(low, 16) <= address < int(high, 16):
        print(flags)
"""


@pytest.mark.slow
@pytest.mark.parametrize("given", ["", "glibc.malloc.tcache_count=7"])
def test_buffers_are_in_huge_pages_where_these_are_given_on_request(given):
    modes = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    command = [sys.executable, "-c", CODE]
    environment = os.environ | {"GLIBC_TUNABLES": given}
    result = subprocess.run(command, env=environment, text=True, capture_output=True, check=True)
    on_request = modes.exists() and "[madvise]" in modes.read_text()
    assert ("hg" in result.stdout.split()) == on_request


@pytest.mark.parametrize(("module", "status"), [("launch.sft", -signal.SIGINT), ("mine", 0)])
def test_only_a_command_sets_signals_before_its_imports(module, status):
    code = """
import os, signal, sys
class Finder:
    def find_spec(name, *_):
        if name == "launch.shared":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder)
sys.argv = ["-m"]
import launch
"""
    command = [sys.executable, "-c", code, module]
    result = subprocess.run(command, stderr=subprocess.PIPE, check=False)
    assert (result.returncode, result.stderr) == (status, b"")


@pytest.mark.parametrize(
    ("platform", "plugin", "flags", "expected"),
    [
        ("cpu", True, "", "--xla_backend_optimization_level=1"),
        ("", False, "--xla_dump_to=x", "--xla_dump_to=x --xla_backend_optimization_level=1"),
        ("", True, "--xla_dump_to=x", "--xla_dump_to=x"),
        ("cpu", False, "--xla_backend_optimization_level=3", "--xla_backend_optimization_level=3"),
    ],
)
def test_only_compilation_for_cpus_is_shortened(monkeypatch, platform, plugin, flags, expected):
    monkeypatch.setenv("JAX_PLATFORMS", platform)
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: plugin or None)
    process.shorten_compilation()
    assert os.environ["XLA_FLAGS"] == expected
