"""What launch.collect_edits is run on, and under."""

import llm_server
import pytest
from collect_cases import write_responses
from request_cases import shorten_pauses


@pytest.fixture
def responses(tmp_path):
    return write_responses(tmp_path, 40)


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """Keys, and no test that waits for seconds between two attempts."""
    shorten_pauses(monkeypatch.setattr)
    monkeypatch.setenv("ANTHROPIC_API_KEY", llm_server.KEY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
