"""Shared by the peers' scripts, which run as ``python SCRIPT.py JOB.json RESULT.json``."""

import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import AutoTokenizer, TrainerCallback, logging

logging.set_verbosity_error()
torch.set_num_threads(len(os.sched_getaffinity(0)))
torch.manual_seed(0)


def read_job() -> dict:
    return json.loads(Path(sys.argv[1]).read_text())


def write_result(result: dict) -> None:
    """Writes the result (``seconds`` per timed step, counts) with the peak memory."""
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]
    result["memory_gb"] = int(peak) * 1024 / 1e9
    Path(sys.argv[2]).write_text(json.dumps(result))


def load_tokenizer(model: str):
    """The tokenizer with left padding and a pad token that is not its EOS."""
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    names = ("<|endoftext|>", "<unk>")
    tokenizer.pad_token = next(name for name in names if name in tokenizer.get_vocab())
    return tokenizer


class Clock(TrainerCallback):
    """Records the seconds of every step of a trainer, from the end of the last step."""

    def __init__(self):
        self.seconds = []

    def on_train_begin(self, *args, **kwargs):
        self.last = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now
        print(f"step {self.seconds[-1]:.2f} s", flush=True)


def trainer_options() -> dict:
    """Options of every trainer: float32 on the CPU, no files, no gradient checkpointing."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
