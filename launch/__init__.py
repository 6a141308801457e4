"""The commands: ``python -m launch.NAME``."""

import sys

if sys.argv[:1] == ["-m"]:  # `python -m launch.NAME`: before its imports, which take seconds
    from launch.shared import process

    process.begin()
