"""What a command sets for its process."""

import os
import signal
import subprocess
import sys

from fgrlhf_jax.runtime.run_dir import PARENT


def test_a_stage_whose_pipeline_has_ended_does_not_begin():
    """It may have ended before the kernel was asked to report it."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    result = subprocess.run(
        [sys.executable, "-c", "from launch.shared import process; process.prepare()"],
        env=os.environ | {PARENT: str(ended.pid)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == -signal.SIGINT
    assert result.stderr.splitlines()[-1] == "KeyboardInterrupt"
