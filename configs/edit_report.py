"""How minimal the edits of a file are: what ``launch.edit_report`` needs."""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.input = ""  # FILE[,FILE…] of edits; "" are edits of the embedded world
    config.output = ""  # FILE.html | FILE.json; the table is printed in any case
    config.tokenizer = (
        ""  # FOLDER | HUB_ID | FILE.gguf: token change ratios beside those of words
    )
    config.max_change_ratio = 0.5  # of words: rows beyond it are counted as rewritten
    config.examples = 3  # of each sort in the file; the terminal shows one
    config.seed = 0  # of the embedded world
    config.lock()
    return config
