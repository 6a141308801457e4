"""Rewards of every token of given responses: what ``launch.score`` needs."""

from configs.base import DTYPE, MESH
from configs.fields import Field, make_config

FIELDS = {
    "reward_model": Field(
        "runs/rm_tiny_token_edit", "run_dir of launch.train_rm, or its export", first=True
    ),
    "input": Field(
        "runs/rm_tiny_token_edit/data/test.jsonl",
        "edits, preferences or instructions with responses",
        first=True,
    ),
    "output": Field("", 'FILE.jsonl | FILE.html; "" prints to the terminal', first=True),
    "limit": Field(0, "rows; 0: all (the terminal shows 5)", at_least=0, first=True),
    "calibrated": Field(True, "about one unit a response; False: the raw rewards"),
    "batch_size": Field(16, "responses at a time", at_least=1),
    "max_length": Field(
        0, "tokens; longer responses are cut; 0: the training run's", at_least=0
    ),
    "mesh": MESH,
    "dtype": DTYPE,
}


def get_config():
    return make_config(FIELDS)
