"""Rewards of every token of given responses: what ``launch.score`` needs."""

from configs.common import DTYPE, ENSEMBLE_PENALTY, MESH, OVERWRITE, READING, REWARD_MODEL
from configs.fields import Field, collect_fields, make_config

GROUPS = {
    "": {
        "reward_model": Field("runs/rm_tiny_token_edit", REWARD_MODEL),
        "input": Field(
            "runs/rm_tiny_token_edit/data/test.jsonl",
            "edits, preferences or instructions with responses",
        ),
        "output": Field("", 'FILE.jsonl | FILE.html | FILE.svg; "" prints to the terminal'),
        "overwrite": OVERWRITE,
        "limit": Field(0, "rows; 0: all (the terminal shows 5)", at_least=0),
        "normalized": Field(True, "about one unit a response; False: the raw rewards"),
        "ensemble_penalty": ENSEMBLE_PENALTY,
        "batch_size": Field(16, "responses at a time", at_least=1),
        "max_length": Field(0, "tokens of prompt and response; 0: as trained", at_least=0),
        "mesh": MESH,
        "dtype": DTYPE,
    }
}
FIELDS = collect_fields(GROUPS, READING, first="reward_model input output limit")


def get_config():
    return make_config(FIELDS)
