"""A trace of one step, for TensorBoard's profiler and for ui.perfetto.dev."""

from collections.abc import Callable
from pathlib import Path

import jax


def traced(function: Callable, *args, folder: Path):
    """``function(*args)``, waited for, with a trace of what host and devices did meanwhile."""
    with jax.profiler.trace(folder, create_perfetto_trace=jax.process_index() == 0):
        return jax.block_until_ready(function(*args))
