"""How minimal the edits of a file are: what ``launch.edit_report`` needs."""

from configs.fields import Field, make_config

FIELDS = {
    "input": Field("", 'FILE[,FILE…] of edits; "": edits of the embedded world', first=True),
    "output": Field("", "FILE.html | FILE.json; the table is printed anyway", first=True),
    "tokenizer": Field(
        "",
        "FOLDER | HUB_ID | FILE.gguf: change ratios of tokens beside those of words",
        first=True,
    ),
    "max_change_ratio": Field(
        0.5, "share of the words; rows beyond it count as rewritten", at_least=0, first=True
    ),
    "examples": Field(
        3, "of each sort in the file; the terminal shows one", at_least=0, first=True
    ),
    "seed": Field(0, "of the embedded world", at_least=0),
}


def get_config():
    return make_config(FIELDS)
