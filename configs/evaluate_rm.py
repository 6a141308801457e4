"""The table of a reward model for any file of pairs: what ``launch.evaluate_rm`` needs."""

from configs.base import DTYPE, MESH, OVERLONG
from configs.fields import Field, make_config

FIELDS = {
    "reward_model": Field(
        "runs/rm_tiny_token_edit", "run_dir of launch.train_rm, or its export", first=True
    ),
    "test": Field(
        "runs/rm_tiny_token_edit/data/test.jsonl", "edits, preferences or both", first=True
    ),
    "output": Field("", 'FILE.json; "" only prints', first=True),
    "batch_size": Field(16, "pairs at a time", at_least=1),
    "max_length": Field(0, "tokens of prompt and response; 0: the training run's", at_least=0),
    "overlong": Field("truncate", "what becomes of longer rows", choices=OVERLONG),
    "mesh": MESH,
    "dtype": DTYPE,
}


def get_config():
    return make_config(FIELDS)
