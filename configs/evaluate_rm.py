"""Fields of ``launch.evaluate_rm``, which evaluates a reward model on a file of pairs."""

from configs.common import DTYPE, ENSEMBLE_PENALTY, MESH, OVERLONG, OVERWRITE, READING, REWARD_MODEL
from configs.fields import Field, collect_fields, make_config

GROUPS = {
    "": {
        "reward_model": Field("runs/rm_tiny_token_edit", REWARD_MODEL),
        "test": Field("runs/rm_tiny_token_edit/data/test.jsonl", "edits, preferences or both"),
        "output": Field("", 'FILE.json; "": only print'),
        "overwrite": OVERWRITE,
        "ensemble_penalty": ENSEMBLE_PENALTY,
        "batch_size": Field(16, "pairs per batch", at_least=1),
        "max_length": Field(0, "tokens of prompt and response; 0: as in training", at_least=0),
        "overlong": Field("truncate", "truncate or drop longer rows", choices=OVERLONG),
        "mesh": MESH,
        "dtype": DTYPE,
    }
}
FIELDS = collect_fields(GROUPS, READING, first="reward_model test output")


def get_config():
    return make_config(FIELDS)
