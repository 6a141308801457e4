"""People edit responses in a browser: what ``launch.annotate`` needs."""

from configs.common import OVERWRITE, READING
from configs.fields import Field, collect_fields, make_config
from fgrlhf_jax.feedback.annotation.formats import FORMATS

GROUPS = {
    "Annotation": {
        "input": Field(
            "",
            "FILE of responses or edits, or of Argilla or Label Studio; "
            '"": responses of the embedded world',
        ),
        "output": Field("", "FILE.jsonl of edits; beside it FILE.jsonl.sqlite, which has all"),
        "guidelines": Field("", "FILE.md for annotators, on the start page, before any password"),
        "host": Field("127.0.0.1", "address of the page; 0.0.0.0: all, with a password"),
        "port": Field(7860, "port of the page; 0: any that is free", at_least=0, at_most=65535),
        "root_path": Field(
            "", "https://HOST/PATH that browsers show, where a proxy passes the page on"
        ),
        "overlap": Field(1, "people that edit each row", at_least=1),
        "max_change_ratio": Field(
            0.5, "share of words; above it an edit is confirmed and marked", at_least=0
        ),
        "release_minutes": Field(
            5.0,
            "minutes of a browser's silence after which its row goes to others, once no other is "
            "left; hidden tabs report once a minute only",
            at_least=0,
        ),
        "export": Field("", "FILE.json (edits: FILE.jsonl) to write and not serve the page"),
        "format": Field("argilla", "of the export", choices=FORMATS),
        "overwrite": OVERWRITE,
    }
}
FIELDS = collect_fields(GROUPS, READING, first="input output overlap guidelines")


def get_config():
    return make_config(FIELDS)
