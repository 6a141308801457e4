"""Every test that docs/peer_faults.md names for a fault exists."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_fault_names_tests_that_exist():
    table = (ROOT / "docs" / "peer_faults.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+)\. .* \| (.*) \|$", table, flags=re.M)
    assert [int(number) for number, _ in rows] == list(range(1, 13))
    for _, cell in rows:
        names = re.findall(r"`(tests/\w+/\w+_test\.py)::(test_\w+)`", cell)
        assert len(names) == cell.count("`") // 2 > 0, cell
        for path, test in names:
            assert f"\ndef {test}(" in (ROOT / path).read_text(encoding="utf-8"), (path, test)
