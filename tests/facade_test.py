"""``import fgrlhf_jax`` is quick, and offers the names that a program needs."""

import subprocess
import sys

import pytest

import fgrlhf_jax


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, fgrlhf_jax; "
        "print(sorted({'jax', 'numpy', 'flax', 'transformers'} & sys.modules.keys()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


def test_nothing_advises_to_install_torch():
    """Models are ours; transformers, of which only the tokenizers are used, would say so."""
    code = (
        "import importlib.util as util; find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest)\n"
        "from fgrlhf_jax.tiny_world import words; words.make_tokenizer()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr == ""


@pytest.mark.parametrize("name", fgrlhf_jax.__all__)
def test_every_name_is_there(name):
    assert getattr(fgrlhf_jax, name).__name__ == name


def test_other_names_are_not():
    assert dir(fgrlhf_jax) == fgrlhf_jax.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fgrlhf_jax.nothing  # noqa: B018
