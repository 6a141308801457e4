"""Importing the package is quick, changes nothing, and gives the names that a program needs."""

import json
import subprocess
import sys

import pytest

import fgrlhf_jax.functional

# Prints what differs after every module of ours was imported. Third parties come first: what they
# do is theirs.
SCRIPT = """
import importlib, json, logging, os, pkgutil, signal, sys, threading, warnings

for name in (
    "absl.logging chex datasets flax.linen huggingface_hub jax jinja2 ml_collections numpy optax "
    "orbax.checkpoint pyarrow.parquet rapidfuzz safetensors.numpy scipy.stats tokenizers tqdm"
).split():
    importlib.import_module(name)
import jax

def state():
    loggers = {"root": logging.root} | logging.root.manager.loggerDict
    listeners = jax._src.monitoring._event_duration_secs_listeners
    return {
        **{
            f"logger {name}": (logger.level, [*logger.handlers], logger.propagate, logger.disabled)
            for name, logger in loggers.items()
            if isinstance(logger, logging.Logger)
        },
        **{f"sys.{name}": getattr(sys, name) for name in dir(sys) if name.endswith("hook")},
        **{f"signal {number}": signal.getsignal(number) for number in signal.valid_signals()},
        **{f"environment {name}": value for name, value in os.environ.items()},
        **{f"jax {name}": value for name, value in jax.config.values.items()},
        "jax listeners": [*listeners],
        "warnings": [*warnings.filters],
        "threading": threading.excepthook,
        "sys.path": [*sys.path],
        "transformers": "transformers" in sys.modules,  # slow, and says that torch is missing
    }

before = state()
for package in ("fgrlhf_jax", "launch", "configs"):
    path = importlib.import_module(package).__path__
    for module in pkgutil.walk_packages(path, f"{package}."):
        importlib.import_module(module.name)
after = state()
new = {name: (0, [], True, False) for name in after if name.startswith("logger ")}
print(json.dumps({
    name: [repr((new | before).get(name)), repr(after.get(name))]
    for name in {**before, **after}
    if (new | before).get(name) != after.get(name)
}))
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def test_an_import_changes_nothing():
    assert json.loads(run(SCRIPT).stdout) == {}


def test_commands_without_a_device_start_without_jax_and_the_package_with_nothing_heavy():
    """JAX takes a second to import."""
    code = (
        "import importlib, sys, fgrlhf_jax\n"
        "assert not {'jax', 'numpy', 'flax', 'transformers'} & sys.modules.keys()\n"
        "from launch.shared import config_files\n"
        "for name in sys.argv[1:]:\n"
        "    config_files.load(importlib.import_module(f'launch.{name}').CONFIG)\n"
        "assert 'jax' not in sys.modules"
    )
    run(code, "annotate", "collect_edits", "collect_preferences", "data", "edit_report", "evaluate")


def test_nothing_advises_to_install_torch():
    """Models are ours; transformers, of which only the tokenizers are used, would say so."""
    code = (
        "import importlib.util as util; find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest)\n"
        "from fgrlhf_jax.tiny_world import words; words.make_tokenizer()"
    )
    assert run(code).stderr == ""


@pytest.mark.parametrize("package", [fgrlhf_jax, fgrlhf_jax.functional])
def test_every_name_is_there_and_no_other(package):
    for name in package.__all__:
        assert getattr(package, name).__name__.endswith(name)
    assert dir(package) == package.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_every_module_of_pure_functions_is_introduced():
    introduction = fgrlhf_jax.functional.__doc__
    assert all(f"``{name}``" in introduction for name in dir(fgrlhf_jax.functional))
