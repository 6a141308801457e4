"""Putting a model or a file of feedback on the Hugging Face hub: what ``launch.push`` needs."""

from configs.common import READING
from configs.fields import Field, collect_fields, make_config

GROUPS = {
    "": {
        "path": Field("", "run_dir or export of a model, or FILE.jsonl|.json|.parquet of rows"),
        "repo": Field("", "ORG/NAME on the hub; made where it is missing"),
        "private": Field(True, "whether only you may read it; False publishes it"),
        "license": Field(
            "", "as the hub calls it, such as apache-2.0 or cc-by-4.0; other: see the card"
        ),
        "made": Field("", "of rows: how they came about, a sentence or more for their card"),
        "revision": Field("", 'branch, made where it is missing; "": main'),
    }
}
FIELDS = collect_fields(GROUPS, READING, first="path repo private license made revision")


def get_config():
    return make_config(FIELDS)
