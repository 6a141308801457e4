"""How minimal the edits of a file are: what ``launch.edit_report`` needs."""

from configs.common import OVERWRITE, READING
from configs.fields import Field, collect_fields, make_config

GROUPS = {
    "": {
        "input": Field("", 'FILE[,FILE…] of edits; "": edits of the embedded world'),
        "output": Field("", "FILE.html | FILE.json; the table is printed anyway"),
        "overwrite": OVERWRITE,
        "tokenizer": Field(
            "", "FOLDER | HUB_ID | FILE.gguf: change ratios of tokens beside those of words"
        ),
        "max_change_ratio": Field(
            0.5, "share of words beyond which a row is rewritten", at_least=0
        ),
        "examples": Field(3, "of each sort; the terminal shows one", at_least=0),
        "seed": Field(0, "of the embedded world", at_least=0),
    }
}
FIELDS = collect_fields(GROUPS, READING, first="input output tokenizer max_change_ratio examples")


def get_config():
    return make_config(FIELDS)
