"""People edit responses in a browser: what ``launch.annotate`` needs."""

from configs.fields import Field, make_config
from fgrlhf_jax.feedback.annotation.formats import FORMATS

FIELDS = {
    "input": Field(
        "",
        "FILE of responses or edits, or of Argilla or Label Studio; "
        '"": responses of the embedded world',
        first=True,
    ),
    "output": Field("", "FILE.jsonl of edits; beside it FILE.jsonl.state.jsonl", first=True),
    "host": Field("127.0.0.1", "address of the page; 0.0.0.0 is every one, with a password"),
    "port": Field(7860, "port of the page; 0: any that is free", at_least=0, at_most=65535),
    "overlap": Field(1, "people that edit each row", at_least=1, first=True),
    "max_change_ratio": Field(
        0.5, "share of the words that may change before the page warns", at_least=0
    ),
    "release_minutes": Field(
        5.0,
        "minutes of a browser's silence after which its row goes to others, once no other is "
        "left; hidden tabs report once a minute only",
        at_least=0,
    ),
    "export": Field("", "FILE.json (edits: FILE.jsonl) to write in place of serving the page"),
    "format": Field("argilla", "of the export", choices=FORMATS),
}


def get_config():
    return make_config(FIELDS)
