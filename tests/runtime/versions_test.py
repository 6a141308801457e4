"""What a report says of the machine and the code."""

import os
import re
import subprocess
from pathlib import Path

from fgrlhf_jax.runtime import versions


def test_versions_and_devices():
    assert re.match(
        r"fgrlhf_jax \S+, jax 0\.\d+\.\d+, flax \S+, Python 3\.", versions.describe_versions()
    )
    cores = len(os.sched_getaffinity(0))
    assert versions.describe_devices() == f"{cores} CPU core{'s' * (cores > 1)}"


def test_the_commit_of_a_checkout(tmp_path, monkeypatch):
    module = tmp_path / "a" / "b" / "versions.py"
    module.parent.mkdir(parents=True)
    module.write_text("1")
    monkeypatch.setattr(versions, "__file__", str(module))
    assert versions.describe_commit() == ""  # installed, not a checkout

    def git(*words):
        identity = ("-c", "user.name=n", "-c", "user.email=e")
        subprocess.run(["git", "-C", tmp_path, *identity, *words], check=True, capture_output=True)

    git("init")
    git("add", "a")
    git("commit", "-m", "first")
    commit = versions.describe_commit()
    assert re.fullmatch("[0-9a-f]{7,}", commit)
    Path(module).write_text("2")
    assert versions.describe_commit() == f"{commit} (modified)"
