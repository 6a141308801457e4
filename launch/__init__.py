"""The commands: ``python -m launch.NAME``."""

import signal
import sys

if sys.argv[:1] == ["-m"]:  # `python -m launch.NAME`: before its imports, which take seconds
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # without a traceback, until process.begin

    from launch.shared import process

    process.begin()
