"""Lower bounds on the time of a step on a named accelerator, and each stage's bottleneck.

A stage computes, accesses memory and communicates with other devices. It takes at least as long as
the slowest of the three, and their sum if nothing overlaps.
"""

from fgrlhf_jax.runtime.accelerators import ACCELERATORS

NOT_IN_STEP = ("evaluate",)  # stages that are not part of every step


def roofline(plan: dict, device: str, efficiency: float) -> dict:
    """Seconds of every stage of a plan if products reach ``efficiency`` of the peak FLOP/s.

    Returns:
      A dict for JSON: per stage in ``stages`` the seconds of ``compute``, ``memory`` and ``links``,
      the largest of them (``bound``) and its name (``binds``); seconds of a step if all transfers
      overlap (``overlapped``) or none does (``serial``).
    """
    peak, stages = ACCELERATORS[device], {}
    for step in plan["steps"].values():
        for name, costs in step["stages"].items():
            seconds = {
                "compute": costs["flops"] / (peak.flops * efficiency),
                "memory": costs["memory_bytes"] / peak.bandwidth,
                "links": costs["link_bytes"] / peak.interconnect,
            }
            binds = max(seconds, key=seconds.get)
            stages[name] = costs | seconds | {"bound": seconds[binds], "binds": binds}
    parts = [stage for name, stage in stages.items() if name not in NOT_IN_STEP]
    return {
        "device": device,
        "efficiency": efficiency,
        "stages": stages,
        "overlapped": sum(stage["bound"] for stage in parts),
        "serial": sum(stage[part] for stage in parts for part in ("compute", "memory", "links")),
    }


def format_roofline(roof: dict, devices: int) -> str:
    """The result of :func:`roofline` as text."""
    peak = ACCELERATORS[roof["device"]]
    lines = [
        f"On {devices} x {roof['device']}: {peak.flops / 1e12:g} TFLOP/s, of which products reach "
        f"{roof['efficiency']:.0%}, memory {peak.bandwidth / 1e9:g} GB/s, links "
        f"{peak.interconnect / 1e9:g} GB/s",
        f"{'stage':14}{'TFLOP':>10}{'memory GB':>12}{'links GB':>11}"
        f"{'compute s':>12}{'memory s':>11}{'links s':>10}{'at least s':>12}   share  "
        "bound by  compute/links",
    ]
    for name, s in roof["stages"].items():
        ratio = f"{s['compute'] / s['links']:.2f}" if s["links"] else ""
        ratio = ratio if s["compute"] < 100 * s["links"] else ">100"
        share = "" if name in NOT_IN_STEP else f"{s['bound'] / roof['overlapped']:.0%}"
        lines.append(
            f"{name:14}{s['flops'] / 1e12:10.1f}{s['memory_bytes'] / 1e9:12.1f}"
            f"{s['link_bytes'] / 1e9:11.1f}{s['compute']:12.3f}{s['memory']:11.3f}"
            f"{s['links']:10.3f}{s['bound']:12.3f}{share:>8}  {s['binds']:10}{ratio}"
        )
    return "\n".join(
        [
            *lines,
            f"a step: {roof['overlapped']:.2f} s if transfers overlap with computation, "
            f"{roof['serial']:.2f} s if nothing overlaps",
        ]
    )
