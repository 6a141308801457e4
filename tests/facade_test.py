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


@pytest.mark.parametrize("name", fgrlhf_jax.__all__)
def test_every_name_is_there(name):
    assert name in dir(fgrlhf_jax)
    assert getattr(fgrlhf_jax, name).__name__ == name


def test_another_name_is_not():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fgrlhf_jax.nothing  # noqa: B018
