"""A folder of one's own, and keys."""

import llm_server
import pytest

from fgrlhf_jax.feedback.llm.client import PROVIDERS


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    for variable, *_ in PROVIDERS.values():
        monkeypatch.setenv(variable, llm_server.KEY)
    monkeypatch.chdir(tmp_path)
    return tmp_path
