"""Lower bounds on the time of stages with round costs."""

import pytest

from fgrlhf_jax.plan.roofline import format_roofline, roofline

STAGES = {  # of an H100: 989.4 TFLOP/s, 3,350 GB/s, 450 GB/s
    "prefill": (989.4e12, 0.0, 0.0),
    "decode": (0.0, 3.35e12, 45e9),
    "update": (4 * 989.4e12, 3.35e12, 9 * 450e9),
    "evaluate": (1e18, 0.0, 0.0),
}
NAMES = ("flops", "memory_bytes", "link_bytes")


def test_the_slowest_part_binds():
    stages = {name: dict(zip(NAMES, costs, strict=True)) for name, costs in STAGES.items()}
    roof = roofline({"steps": {"all": {"stages": stages}}}, "h100", 0.5)
    found = {name: (stage["bound"], stage["binds"]) for name, stage in roof["stages"].items()}
    assert found.pop("evaluate") == (pytest.approx(1e18 / 989.4e12 * 2), "compute")
    assert found == {
        "prefill": (pytest.approx(2), "compute"),
        "decode": (pytest.approx(1), "memory"),
        "update": (pytest.approx(9), "links"),
    }
    assert roof["overlapped"] == pytest.approx(2 + 1 + 9)
    assert roof["serial"] == pytest.approx(2 + 1 + 0.1 + 8 + 1 + 9)
    lines = format_roofline(roof, 8).splitlines()
    assert lines[4].split() == [
        *("update", "3957.6", "3350.0", "4050.0", "8.000", "1.000", "9.000", "9.000", "75%"),
        *("links", "0.89"),  # a larger micro-batch is needed
    ]
    stages["decode"] |= {"flops": 1e12, "link_bytes": 8.0}  # of a batch's last token, say
    roof = roofline({"steps": {"all": {"stages": stages}}}, "h100", 0.5)
    assert format_roofline(roof, 8).splitlines()[3].split()[-2:] == ["memory", ">100"]
