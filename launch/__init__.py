"""The commands: ``python -m launch.NAME``."""

import signal
import sys

OWN = ("launch", "fgrlhf_jax.pipeline.starter")  # not a module of a user that imports this one

if sys.argv[:1] == ["-m"] and any(word.startswith(OWN) for word in sys.orig_argv[1:]):
    # Before the command's imports, which take seconds: Ctrl-C prints no traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    from launch.shared import process

    process.begin()
