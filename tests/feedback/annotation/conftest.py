"""Two rows to annotate, each by two people."""

import pytest

from fgrlhf_jax.feedback.annotation.items import Item
from fgrlhf_jax.feedback.annotation.store import Annotations


@pytest.fixture
def store(tmp_path):
    rows = [Item(str(k), f"Say {k}.", "", f"This is {k}.\r\nOr not.") for k in (1, 2)]
    with Annotations(rows, tmp_path / "edits.jsonl", overlap=2) as store:
        yield store
