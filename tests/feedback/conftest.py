"""A folder of one's own, keys, no seconds between two attempts, rows to annotate or to edit."""

import os
import sys

import llm_server
import pytest
from collect_cases import write_responses
from request_cases import shorten_pauses

from fgrlhf_jax.feedback.annotation.items import Item
from fgrlhf_jax.feedback.annotation.store import Annotations
from fgrlhf_jax.feedback.llm.client import PROVIDERS


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for commands that tests start
    for variable, *_ in PROVIDERS.values():
        monkeypatch.setenv(variable, llm_server.KEY)
    shorten_pauses(monkeypatch.setattr)


@pytest.fixture
def responses(tmp_path):
    return write_responses(tmp_path, 40)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "edits.jsonl"


@pytest.fixture
def store(output):
    """Two rows, each for two people."""
    rows = [Item(str(k), f"Say {k}.", "", f"This is {k}.\r\nOr not.") for k in (1, 2)]
    with Annotations(rows, output, overlap=2) as store:
        yield store
