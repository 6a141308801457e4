"""What commands show: cleaned, shortened, and never a reason to stop; signals at any time."""

import os
import pty
import signal
import subprocess
import sys
import time
import types

import processes
import pytest

from fgrlhf_jax.runtime import interrupt
from launch.shared import terminal

DATA = [sys.executable, "-m", "launch.data", "--config.samples=1"]
STEERING = "a\x1b]0;title\x07b\x1b[2Jc\u202ed\u2066e\x9bf\rg"


def show(text: str, **options) -> subprocess.CompletedProcess:
    """Prints a text as a command does."""
    code = f"from launch.shared import terminal\nterminal.protect()\nprint({text!r})"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=60, **options
    )


def test_nothing_steers_the_terminal_and_long_lines_are_shortened():
    text = STEERING + "\n\tnext \u200d\u0301\n\x1b[31mred\n" + "x" * 50_000 + "end\nshort"
    steering, following, red, long, short = show(text).stdout.splitlines()
    mark = terminal.REPLACEMENT
    assert steering == f"a{mark}]0;title{mark}b{mark}[2Jc{mark}d{mark}e{mark}f{mark}g"
    assert (following, short) == ("\tnext \u200d\u0301", "short")
    assert "\x1b" not in red
    assert len(long) < 10_100
    assert long.endswith("xend")
    assert "(50,003 characters)" in long
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    assert show("a → b é", env=environment).stdout == "a \\u2192 b \\xe9\n"


def test_colours_are_for_terminals():
    text = "\x1b[31;9mred\x1b[0m\x1b[2J"
    parent, child = pty.openpty()
    code = f"from launch.shared import terminal\nterminal.protect()\nprint({text!r})"
    subprocess.run([sys.executable, "-c", code], stdout=child, timeout=60, check=True)
    assert os.read(parent, 100).decode() == f"\x1b[31;9mred\x1b[0m{terminal.REPLACEMENT}[2J\r\n"


@pytest.mark.parametrize("redirection", ["> /dev/full", ">&- 2>&-", "> /dev/full 2>&1"])
def test_a_stdout_that_takes_nothing(tmp_path, redirection):
    """The work counts."""
    output = tmp_path / "statistics.json"
    command = f"{' '.join(DATA)} --config.output={output} {redirection}"
    run = subprocess.run(command, shell=True, capture_output=True, text=True)
    full = "the output is incomplete: No space left on device\n"
    assert (run.returncode, run.stdout) == (0, "")
    assert run.stderr == (full if redirection == "> /dev/full" else "")
    assert output.stat().st_size > 1000


@pytest.mark.parametrize(("name", "status"), [("~/out.json", 0), ("out.json", 2)])
def test_a_current_folder_that_is_gone(tmp_path, name, status):
    """Libraries fail there; absolute names, and those below HOME, still work."""
    (tmp_path / "gone").mkdir()
    command = f"rmdir ../gone && HOME={tmp_path} {' '.join(DATA)} --config.output={name}"
    run = subprocess.run(command, shell=True, cwd=tmp_path / "gone", capture_output=True, text=True)
    assert run.returncode == status, run.stderr
    assert run.stderr.count("\n") == bool(status)
    assert (tmp_path / "out.json").exists() == (not status)


def test_output_that_nobody_reads():
    """As with `| head`: no traceback."""
    run = subprocess.Popen(DATA, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    run.stdout.close()
    with run.stderr:
        errors = run.stderr.read().decode()
    assert (run.wait(), errors) == (141, "")


def test_an_error_is_one_short_line():
    sentence = terminal.as_sentence("error: " + STEERING + "\nx" * 10**6 + "; choose another")
    assert len(sentence) <= terminal.MAX_ERROR
    assert sentence.startswith("error: a")
    assert sentence.endswith("x; choose another")
    assert sentence.replace("…", "").replace(terminal.REPLACEMENT, "").isascii()


WAITS = """
import sys, time
from launch.shared import process
process.begin()
{before}
from launch.shared import cli
def main(config):
    {main}
    print("ready", flush=True)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        pass
cli.command(main, "configs/data.py", "")
"""


def interrupted(*numbers: int, before: str = "pass", main: str = "pass", **pipes):
    """A command that gets signals once it says that it is ready: (status, stderr)."""
    code = WAITS.format(before=before, main=main)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | pipes
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as run:
        assert run.stdout.readline() == "ready\n"
        for number in numbers:
            run.send_signal(number)
            time.sleep(0.35)
        _, errors = run.communicate(timeout=20)
    return run.returncode, errors


# What a callback raises is reported, and lost.
IN_CALLBACK = (
    "import gc; gc.callbacks.append(lambda *_: print('ready', flush=True) or time.sleep(1)); "
    "gc.collect()"
)


# What Python waits for as for a compilation: no signal interrupts it.
IN_C = "import hashlib; print('ready', flush=True); hashlib.pbkdf2_hmac('md5', b'', b'', 10**8)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "main", "number"),
    [
        ("print('ready', flush=True); time.sleep(20)", "pass", signal.SIGINT),
        ("pass", "pass", signal.SIGHUP),
        ("pass", IN_CALLBACK, signal.SIGTERM),
        ("pass", IN_C, signal.SIGINT),
    ],
    ids=["importing", "working", "in a callback", "in C"],
)
def test_one_signal_ends_a_command(before, main, number):
    """One handler has all three signals."""
    assert interrupted(number, before=before, main=main) == (130, f"{interrupt.EXIT_MESSAGE}\n")


@pytest.mark.slow
def test_the_second_signal_ends_at_once():
    """Whatever catches the exception of the first."""
    main = "interrupt.Interrupt().__enter__()"
    before, numbers = "from fgrlhf_jax.runtime import interrupt", [signal.SIGTERM] * 2
    expected = 130, f"{interrupt.EXIT_MESSAGE}\n"
    assert interrupted(*numbers, before=before, main=main) == expected
    with open("/dev/full", "w") as full:  # or a terminal that has gone
        assert interrupted(*numbers, before=before, main=main, stderr=full) == (130, None)


@pytest.mark.slow
def test_signals_while_nobody_reads_what_a_command_says():
    """As of a terminal that is stopped: it ends once it goes on."""
    fill = "os.set_blocking(2, False); os.write(2, b' ' * 2**20); os.set_blocking(2, True)"
    before = "import os; from fgrlhf_jax.runtime import interrupt"
    main = f"{fill}; interrupt.Interrupt().__enter__()"
    status, errors = interrupted(*[signal.SIGTERM] * 3, before=before, main=main)
    assert (status, errors.strip()) == (130, interrupt.EXIT_MESSAGE)


def test_a_signal_while_jax_is_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", types.ModuleType("jax"))
    assert not interrupt.is_distributed()


def test_nohup():
    main = "import os; print('ready', flush=True); time.sleep(1); os._exit(7)"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which a child inherits
    try:
        assert interrupted(signal.SIGHUP, main=main) == (7, "")
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_platform_that_is_missing():
    code = (
        "from launch.shared import cli, process; process.begin(); "
        "cli.command(lambda config: cli.use_devices(), 'configs/data.py', '')"
    )
    run = processes.python("-c", code, JAX_PLATFORMS="cuda")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("error: JAX_PLATFORMS=cuda: there is no such device")
    assert "()" not in run.stderr
    assert run.stderr.count("\n") == 1
