"""Fields of ``launch.edit_report``, which measures how minimal the edits of a file are."""

from configs.common import OVERWRITE, READING
from configs.fields import Field, collect_fields, make_config

GROUPS = {
    "": {
        "input": Field("", 'FILE[,FILE…] of edits; "": edits of the embedded world'),
        "output": Field("", "FILE.html | FILE.json; the table is always printed"),
        "overwrite": OVERWRITE,
        "tokenizer": Field(
            "", "FOLDER | HUB_ID | FILE.gguf: show change ratios of tokens too, not only of words"
        ),
        "max_change_ratio": Field(
            0.5, "share of changed words above which a row counts as rewritten", at_least=0
        ),
        "examples": Field(3, "example rows per category; the terminal shows one", at_least=0),
        "seed": Field(0, "seed of the embedded world", at_least=0),
    }
}
FIELDS = collect_fields(GROUPS, READING, first="input output tokenizer max_change_ratio examples")


def get_config():
    return make_config(FIELDS)
