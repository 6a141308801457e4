"""The log of a run: rows are JSON, TensorBoard gets them too."""

import json
import math
import sys
import types
from contextlib import closing

import pytest

from fgrlhf_jax.runtime import metric_log


def test_tensorboard_gets_the_rows(tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            assert (folder, purge_step) == (str(tmp_path / "tensorboard"), 3)

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def close(self):
            written.append("closed")

    module = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    with closing(metric_log.Log(tmp_path, step=2, steps=4, tensorboard=True)) as log:
        log.write({"step": 3, "loss": 0.5, "seconds": 0.1})
    assert written == [("loss", 0.5, 3), ("seconds", 0.1, 3), "closed"]


def test_rows_are_json(tmp_path):
    with closing(metric_log.Log(tmp_path, step=0, steps=2)) as log:
        log.write({"step": 1, "loss": 0.5, "extra": math.inf})
        log.write({"step": 2, "loss": math.nan, "extra": 1})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines] == [
        {"step": 1, "loss": 0.5, "extra": None},
        {"step": 2, "loss": None, "extra": 1},
    ]
