"""What a machine can do, how busy it is, and how much memory a process took."""

import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

SIZE = 2048  # of the square matrices


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def busy_warning() -> str:
    """A sentence where others use the machine, else ""; the load is of the last minute."""
    load = os.getloadavg()[0]
    if load < 0.25 * cores():
        return ""
    return (
        f"warning: load average {load:.2f} on {cores()} cores: something else runs (or has just "
        "ended), and figures taken now are worth little"
    )


def peak_memory_gb() -> float:
    """The most memory that this process has held."""
    status = Path("/proc/self/status")
    if status.is_file():  # what getrusage says begins with the memory of the parent
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def measured_flops() -> float:
    """FLOP/s of float32 matrix products, the best of several, in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.machine"], capture_output=True, text=True, check=True
    )
    return float(run.stdout.split()[-1])


def _measure() -> float:
    import jax
    import jax.numpy as jnp

    x = jax.random.normal(jax.random.key(0), (SIZE, SIZE), jnp.float32)
    product = jax.jit(jnp.dot).lower(x, x).compile()
    seconds = []
    for _ in range(12):
        clock = time.perf_counter()
        jax.block_until_ready(product(x, x))
        seconds.append(time.perf_counter() - clock)
    return 2 * SIZE**3 / min(seconds)


if __name__ == "__main__":
    print(_measure())
