"""Fields of ``launch.score``, which computes the reward of every token of responses."""

from configs.common import DTYPE, ENSEMBLE_PENALTY, MESH, OVERWRITE, READING, REWARD_MODEL
from configs.fields import Field, collect_fields, make_config

GROUPS = {
    "": {
        "reward_model": Field("runs/rm_tiny_token_edit", REWARD_MODEL),
        "input": Field(
            "runs/rm_tiny_token_edit/data/test.jsonl", "edits, preferences or responses"
        ),
        "output": Field("", 'FILE.jsonl | FILE.html | FILE.svg; "": print to the terminal'),
        "overwrite": OVERWRITE,
        "limit": Field(0, "number of rows; 0: all (5 in the terminal)", at_least=0),
        "normalized": Field(True, "scale to about one unit per response; False: raw rewards"),
        "ensemble_penalty": ENSEMBLE_PENALTY,
        "batch_size": Field(16, "responses per batch", at_least=1),
        "max_length": Field(0, "tokens of prompt and response; 0: as in training", at_least=0),
        "mesh": MESH,
        "dtype": DTYPE,
    }
}
FIELDS = collect_fields(GROUPS, READING, first="reward_model input output limit")


def get_config():
    return make_config(FIELDS)
