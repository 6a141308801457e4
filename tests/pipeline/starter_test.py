"""Commands forked from one process behave like newly started ones."""

import json
import os
import signal
import time

import pytest

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.pipeline import starter
from fgrlhf_jax.pipeline.starter import Starter

COMMAND = """
import jax, json, os, signal, sys
from jax._src import xla_bridge
number, = sys.argv[1:]
if number == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
told = {name: os.environ[name] for name in ("COMMON", "OWN")}
told |= {"used": xla_bridge.backends_are_initialized(), "devices": len(jax.devices())}
told["limit"] = jax.config.jax_compilation_cache_max_size
print(json.dumps(told | {"input": sys.stdin.read(), "leads": os.getsid(0) == os.getpid()}))
sys.exit(int(number))
"""


def wait(server: Starter, number: int) -> int:
    """Waits for a process and returns its exit status."""
    for _ in range(600):
        if (status := server.statuses().get(number)) is not None:
            return status
        time.sleep(0.05)
    raise TimeoutError


@pytest.mark.slow
def test_a_fork_behaves_like_a_new_process(tmp_path, monkeypatch):
    """The parent has imported all modules, and has no threads and no devices."""
    (tmp_path / "command_of_a_test.py").write_text(COMMAND)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    # NumPy's OpenBLAS has threads, but handles forks itself.
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    log, common = tmp_path / "log", {"COMMON": "a", "JAX_COMPILATION_CACHE_MAX_SIZE": "7"}
    with Starter(common) as server:
        for own, argument, status in (("3", "0", 0), ("2", "2", 2), ("1", "kill", -signal.SIGKILL)):
            variables = {"OWN": own, "JAX_NUM_CPU_DEVICES": own, "XLA_FLAGS": ""}
            number = server.start(["command_of_a_test", argument], log, variables)
            assert wait(server, number) == status
        assert len(os.listdir(f"/proc/{server._server.pid}/task")) == 1
    told = [json.loads(line) for line in log.read_text().splitlines()]
    like = {"COMMON": "a", "used": False, "limit": 7, "input": "", "leads": True}
    assert told == [like | {"OWN": str(n), "devices": n} for n in (3, 2)]


def test_a_killed_server_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(starter, "MODULES", ())
    with Starter({}) as server:
        server._server.kill()
        with pytest.raises(InputError, match="the process that starts the stages was killed, p"):
            server.start(["json.tool"], tmp_path / "log", {})
