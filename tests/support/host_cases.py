"""Pairs of processes that find each other, as those of two hosts do."""

import signal
import socket
import time
from pathlib import Path

from processes import Process, devices


class Pair:
    """Two processes that find each other, each with two devices and an output of its own."""

    def __init__(self, arguments: list[str], folder: Path):
        """``PORT`` and ``NUMBER`` in the arguments are the coordinator's and the process's."""
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
        """Sends a signal to one of them as soon as ``file`` exists."""
        while not file.exists() and self.processes[1].poll() is None:
            time.sleep(0.002)
        self.processes[1].send_signal(signal.SIGTERM)

    def end(self, status: int = 0) -> list[str]:
        """Waits for both, which must end with this status; returns their outputs."""
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
