"""Measures the machine: cores, load, FLOP/s of matrix products, peak memory of a process."""

import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

SIZE = 2048  # rows and columns of the matrices


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def busy_warning() -> str:
    """A warning if the load average of the last minute is high, else ""."""
    load = os.getloadavg()[0]
    if load < 0.25 * cores():
        return ""
    return (
        f"warning: load average {load:.2f} on {cores()} cores: other processes run or have just "
        "ended, so measurements are unreliable"
    )


def peak_memory_gb() -> float:
    """Peak resident memory of this process, in GB."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would include the parent's memory
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def measured_flops() -> float:
    """Best FLOP/s of several float32 matrix products, measured in a fresh process."""
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
