"""Fields of ``launch.push``, which uploads a model or feedback to the Hugging Face hub."""

from configs.common import READING
from configs.fields import Field, collect_fields, make_config

GROUPS = {
    "": {
        "path": Field("", "run_dir or export of a model, or FILE.jsonl|.json|.parquet of rows"),
        "repo": Field("", "ORG/NAME on the hub; created if missing"),
        "private": Field(True, "only you may read it; False: public"),
        "license": Field("", "license id of the hub: apache-2.0, cc-by-4.0; other: see the card"),
        "made": Field("", "rows only: how they were collected, for the data-set card"),
        "revision": Field("", 'branch, created if missing; "": main'),
    }
}
FIELDS = collect_fields(GROUPS, READING, first="path repo private license made revision")


def get_config():
    return make_config(FIELDS)
