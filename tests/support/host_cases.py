"""Pairs of processes that connect through jax.distributed, like those of two hosts."""

import signal
import socket
import time
from pathlib import Path

from processes import Process, devices


class Pair:
    """Two connected processes, each with two devices and its own output file."""

    def __init__(self, arguments: list[str], folder: Path):
        """Replaces PORT (the coordinator's) and NUMBER (the process's) in the arguments."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        self.outputs = [folder / f"output.{number}" for number in "01"]
        self.processes = []
        for number, file in enumerate(self.outputs):
            words = [a.replace("PORT", port).replace("NUMBER", str(number)) for a in arguments]
            process = Process(words, file, file, XLA_FLAGS=devices(2), PYTHONPATH=str(folder))
            self.processes.append(process)

    def stop(self, file: Path) -> None:
        """Sends SIGTERM to the second process as soon as ``file`` exists."""
        while not file.exists() and self.processes[1].poll() is None:
            time.sleep(0.002)
        self.processes[1].send_signal(signal.SIGTERM)

    def end(self, status: int = 0) -> list[str]:
        """Waits for both, checks their exit status, and returns their outputs."""
        codes, texts = self.results()
        assert codes == [status, status], "\n".join(texts)
        return texts

    def results(self) -> tuple[list[int], list[str]]:
        """Waits for both; returns their exit statuses and outputs."""
        deadline = time.monotonic() + 240
        try:
            codes = [p.wait(max(0, deadline - time.monotonic())) for p in self.processes]
        finally:
            for process in self.processes:
                process.kill()
                process.wait(60)
        return codes, [file.read_text() for file in self.outputs]
