"""benchmarks.scaling at toy size: every kind of point is measured, and powers are right."""

import json

import pytest
import tiny_cases

from benchmarks import fresh, scaling

pytestmark = pytest.mark.slow


def test_all_points_become_a_table(monkeypatch, tmp_path, capsys):
    tiny_cases.one_device(monkeypatch)
    monkeypatch.setattr(fresh, "CACHE", tmp_path)
    monkeypatch.setattr(fresh, "run", lambda command, job, limit: scaling.measure(*job))
    file = tmp_path / "scaling.json"
    scaling.main([f"--json={file}", "--size=tiny"])
    results = json.loads(file.read_text())
    sizes = {name: tuple(point["size"] for point in points) for name, points in results.items()}
    assert sizes == {name: points for name, points in scaling.POINTS["tiny"].items() if points}
    assert len(capsys.readouterr().out.splitlines()) >= 5


def test_quadratic_time_has_power_2():
    points = [{"size": n, "seconds": 3e-6 * n * n} for n in (10, 100, 1000)]
    assert [point["power"] for point in scaling.powers(points)[1:]] == pytest.approx([2, 2])
