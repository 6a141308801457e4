"""The commands: ``python -m launch.NAME``."""

import sys

if sys.argv[:1] == ["-m"]:  # of `python -m launch.NAME`, whose imports take seconds
    from launch.shared import process

    process.begin()
