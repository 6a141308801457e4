"""Fields of ``launch.annotate``, in which people edit responses in a browser."""

from configs.common import OVERWRITE, READING
from configs.fields import Field, collect_fields, make_config
from fgrlhf_jax.feedback.annotation.formats import FORMATS

GROUPS = {
    "Annotation": {
        "input": Field(
            "",
            "FILE of responses or edits, or an export of Argilla or Label Studio; "
            '"": responses of the embedded world',
        ),
        "output": Field("", "FILE.jsonl of edits; FILE.jsonl.sqlite has every decision"),
        "guidelines": Field("", "FILE.md for annotators, public on the start page"),
        "host": Field("127.0.0.1", "address of the page; 0.0.0.0: all, needs a password"),
        "port": Field(7860, "port of the page; 0: any free port", at_least=0, at_most=65535),
        "root_path": Field("", "behind a proxy: the page's public address, https://HOST/PATH"),
        "overlap": Field(1, "number of people who edit each row", at_least=1),
        "max_change_ratio": Field(
            0.5, "share of changed words above which an annotator must confirm", at_least=0
        ),
        "release_minutes": Field(
            5.0,
            "minutes without contact after which a browser's open row is offered to others, if no "
            "other row is left; hidden tabs make contact only once a minute",
            at_least=0,
        ),
        "export": Field("", "write this FILE.json (edits: FILE.jsonl) instead of serving the page"),
        "format": Field("argilla", "format of the export", choices=FORMATS),
        "overwrite": OVERWRITE,
    }
}
FIELDS = collect_fields(GROUPS, READING, first="input output overlap guidelines")


def get_config():
    return make_config(FIELDS)
