"""Published peak performance of accelerators, for rooflines and MFU."""

import re
from typing import NamedTuple


class Accelerator(NamedTuple):
    """Published figures of one device.

    Attributes:
      flops: dense bfloat16 products, FLOP/s.
      memory: bytes.
      bandwidth: of the memory, bytes/s.
      interconnect: to other devices, bytes/s in one direction, sum over all links.
      kind: regular expression of ``jax.Device.device_kind``.
    """

    flops: float
    memory: float
    bandwidth: float
    interconnect: float
    kind: str


# Sources: NVIDIA's data sheets of the SXM modules (whose NVLink figures sum both directions), and
# Google's pages on TPU versions.
ACCELERATORS = {
    "h200": Accelerator(989.4e12, 141e9, 4.8e12, 450e9, r"\bH200\b"),
    "h100": Accelerator(989.4e12, 80e9, 3.35e12, 450e9, r"\bH100\b"),
    "a100": Accelerator(312e12, 80e9, 2.039e12, 300e9, r"\bA100\b"),
    "v5p": Accelerator(459e12, 95e9, 2.765e12, 600e9, r"TPU v5(p|$)"),
    "v5e": Accelerator(197e12, 16e9, 0.819e12, 200e9, r"TPU v5( lite|e)"),
    "v6e": Accelerator(918e12, 32e9, 1.638e12, 400e9, r"TPU v6( lite|e)"),
}


def find(device_kind: str) -> Accelerator | None:
    """The figures for a JAX device kind; None for unknown kinds, such as CPUs."""
    return next((a for a in ACCELERATORS.values() if re.search(a.kind, device_kind)), None)
