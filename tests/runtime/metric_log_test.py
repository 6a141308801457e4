"""The log of a run: rows are JSON, TensorBoard gets them too."""

import sys
import types
from contextlib import closing

import jax
import pytest

from fgrlhf_jax.errors import InputError
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
    log = metric_log.Log(tmp_path, None, {}, {}, (2, 4), tensorboard=True)
    with closing(log):
        log.add(3, {"loss": 0.5})
        log.write({"validation/loss": 0.25})
    assert sorted(written[:-1]) == [("loss", 0.5, 3), ("validation/loss", 0.25, 3)]
    assert written[-1] == "closed"


def test_rows_are_those_that_a_checkpoint_vouches_for(tmp_path):
    path = tmp_path / "rows.jsonl"
    file = metric_log.RowFile(path, {})
    file.append({"step": 1}, {"step": 2})
    saved = file.state
    file.append({"step": 3})
    good = path.read_bytes()
    path.write_bytes(good + b'{"st')  # a kill cuts only what the run makes again
    assert metric_log.RowFile(path, saved).state == saved
    assert path.read_bytes() == good[: saved["bytes"]]
    for damaged, fault in (
        (b'{"step": 1}\n{"step" 2}\n', ":2: this row is damaged (it is not JSON)"),
        (b'{"step": 1}\n{"step": 4}\n', ": is not as the run left it"),
        (b'{"step": 1}\n', ": the rows after line 1 are missing"),
        (b"", ": the rows after line 0 are missing"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(InputError) as error:
            metric_log.RowFile(path, saved)
        to_do = "put back a copy of the file, or start in a new run_dir"
        assert str(error.value) == f"{path}{fault}; {to_do}"
        assert path.read_bytes() == damaged
    path.unlink()
    with pytest.raises(InputError, match=r"rows.jsonl: is missing; put back"):
        metric_log.RowFile(path, saved)


def test_the_speed_of_a_device(monkeypatch):
    """Eight devices, 10 s; no share of a peak that nobody knows."""
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    peaks = {"NVIDIA H100 80GB HBM3": 989.4, "NVIDIA A100-SXM4-80GB": 312, "cpu": None}
    peaks |= {"TPU v5": 459, "TPU v5p": 459, "TPU v5 lite": 197, "TPU v6 lite": 918}
    for kind, peak in peaks.items():
        devices = [types.SimpleNamespace(device_kind=kind)]
        monkeypatch.setattr(jax, "devices", lambda devices=devices: devices)
        rates = metric_log.device_rates(4e15, 800, 10.0)
        assert (rates["tokens_per_second/device"], rates["tflops_per_device"]) == (10, 50)
        assert rates.get("mfu") == (peak and pytest.approx(50 / peak))
