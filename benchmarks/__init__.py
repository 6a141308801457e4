"""Benchmarks of speed and memory: against peers, over sizes, on a device. Not in the package."""
