"""Runs commands on invalid input, damages files, and checks the one-sentence errors."""

import random
import re
import signal
import sys
from pathlib import Path

import pytest

from launch.shared import cli


def run(monkeypatch, capsys, module, *flags: str, **fields) -> tuple[int, list[str]]:
    """Runs a command that must fail; (exit status, lines on stderr). "__" in fields means "."."""
    overrides = [f"--config.{name.replace('__', '.')}={v}" for name, v in fields.items()]
    monkeypatch.setattr(sys, "argv", [module.__name__, *flags, *overrides])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stop:
            cli.command(module.main, module.CONFIG, module.__doc__)
    finally:
        signal.signal(signal.SIGTERM, before)
    lines = re.split(r"[\r\n]+", capsys.readouterr().err)
    return stop.value.code, [line for line in lines if line.strip()]


def error_sentence(result: tuple[int, list[str]]) -> str:
    """The one-sentence error of :func:`run`'s result, without "error: "."""
    status, lines = result
    assert status == 2, lines
    lines = [line for line in lines if not line.startswith("template=")]  # a note, not an error
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fill(value, words: dict):
    """A field's value with the keys of ``words`` replaced by their values."""
    for word, meaning in words.items():
        value = value.replace(word, str(meaning)) if isinstance(value, str) else value
    return value


def damage(path: Path, how: str, rng: random.Random, other: Path) -> None:
    """Damages a file as a disk failure, a person or a partial copy might.

    Args:
      how: "delete", "empty", "cut", "flip" (a bit), or "swap" (content of ``other``).
    """
    content = path.read_bytes()
    place = rng.randrange(max(1, len(content)))
    if how == "delete":
        path.unlink()
    elif how == "swap":
        path.write_bytes(other.read_bytes() if other.exists() else b"")
    else:
        flipped = content[:place] + bytes(b ^ 1 << rng.randrange(8) for b in content[place:][:1])
        changed = {"empty": b"", "cut": content[:place], "flip": flipped + content[place + 1 :]}
        path.write_bytes(changed[how])
