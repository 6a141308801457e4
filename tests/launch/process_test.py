"""What a command sets for its process."""

import re
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_buffers_of_devices_may_be_in_huge_pages():
    """``process.keep_freed_memory``, which conftest.py calls as commands do."""
    address = jnp.ones((1024, 1024)).unsafe_buffer_pointer()
    mappings = re.findall(
        r"^([0-9a-f]+)-([0-9a-f]+) .*?^VmFlags: (.*?)$",
        Path("/proc/self/smaps").read_text(),
        flags=re.MULTILINE | re.DOTALL,
    )
    (flags,) = (f for low, high, f in mappings if int(low, 16) <= address < int(high, 16))
    assert "hg" in flags.split()
