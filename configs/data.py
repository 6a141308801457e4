"""Fields of ``launch.data``, which shows or converts rows."""

from configs.common import OVERWRITE, READING, SOURCE, TEMPLATE
from configs.fields import Field, collect_fields, make_config
from fgrlhf_jax.data.convert import SIDES, TARGETS

GROUPS = {
    "Files": {
        "input": Field("", f'{SOURCE}; "": the embedded world'),
        "output": Field("", "FILE.json of statistics; with to=…: FILE.jsonl|.json of rows"),
        "overwrite": OVERWRITE,
        "limit": Field(0, "rows of each file; 0: all", at_least=0),
        "seed": Field(0, "seed of the shown rows and of the order of sides", at_least=0),
    },
    "Showing": {
        "samples": Field(3, "rows of each file to show in full", at_least=0),
        "tokenizer": Field("", "FOLDER | HUB_ID | FILE.gguf: show lengths in tokens too"),
        "template": TEMPLATE,
        "max_length": Field(512, "tokens of prompt and response, at most", at_least=1),
        "max_prompt_length": Field(192, "tokens of a prompt of PPO, at most", at_least=1),
    },
    "Conversion": {
        "to": Field("", 'kind of rows to write; "": only show rows', choices=("", *TARGETS)),
        "side": Field("better", "with to=instructions: response of a pair to write", choices=SIDES),
        "distinct": Field(False, "drop duplicate rows; prompts are always distinct"),
        "generator": Field("", "model name for alpaca_eval rows that have none"),
    },
}
FIELDS = collect_fields(GROUPS, READING, first="input output limit samples tokenizer to")


def get_config():
    return make_config(FIELDS)
