"""People edit responses in a browser: what ``launch.annotate`` needs."""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.input = ""  # FILE of responses or edits, or of Argilla or Label Studio; "": embedded
    config.output = ""  # FILE.jsonl of edits; beside it FILE.jsonl.state.jsonl
    config.host = "127.0.0.1"  # who may open the page; 0.0.0.0 is everybody, with a password
    config.port = 7860  # 0 is any that is free
    config.overlap = 1  # people that edit each row
    config.max_change_ratio = 0.5  # of the words; above it the page warns
    # Minutes of a browser's silence after which its row goes to others, once no other is left.
    # Hidden tabs speak once a minute only.
    config.release_minutes = 5.0
    config.export = ""  # FILE.json (edits: FILE.jsonl) to write instead of serving the page
    config.format = "argilla"  # argilla | label_studio | edits
    config.lock()
    return config
