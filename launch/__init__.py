"""The commands: python -m launch.NAME. Each is thin; what they do is in fgrlhf_jax."""

import contextlib
import ctypes
import os
import signal

# transformers is here for tokenizers only; its advice to install torch would confuse.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

# Buffers that XLA gives back on the CPU stay with the process, instead of being mapped and zeroed
# again at every step: a third of the time of a small model's update. glibc only.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
PR_SET_PDEATHSIG = 1
with contextlib.suppress(OSError, AttributeError):
    _libc = ctypes.CDLL("libc.so.6")
    _libc.mallopt(M_MMAP_MAX, 0)
    _libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    _libc.mallopt(M_TOP_PAD, 2**27)
    # A stage of a pipeline that is killed saves and stops too. Linux only.
    if os.environ.get("FGRLHF_ENDS_WITH_PARENT"):
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
