"""What ``launch.data`` shows or converts."""

from configs.common import OVERWRITE, READING, SOURCE
from configs.fields import Field, collect_fields, make_config
from fgrlhf_jax.data.convert import SIDES, TARGETS
from fgrlhf_jax.data.templates import TEMPLATES

GROUPS = {
    "Files": {
        "input": Field("", f'{SOURCE}; "": the embedded world'),
        "output": Field("", "FILE.json of figures; with to=…: FILE.jsonl|.json of rows"),
        "overwrite": OVERWRITE,
        "limit": Field(0, "rows of each file; 0: all", at_least=0),
        "seed": Field(0, "of the samples, and of the order of sides", at_least=0),
    },
    "To show": {
        "samples": Field(3, "rows of each file shown in full", at_least=0),
        "tokenizer": Field("", "FOLDER | HUB_ID | FILE.gguf: lengths in tokens too"),
        "template": Field(
            "",
            'format of a prompt; "": what the model of the tokenizer was fine-tuned with here, or '
            "else chat where there is a chat template, or else alpaca",
            choices=("", *TEMPLATES),
        ),
        "max_length": Field(512, "tokens of prompt and response", at_least=1),
        "max_prompt_length": Field(192, "tokens of a prompt of PPO", at_least=1),
    },
    "To convert": {
        "to": Field("", 'kind of the rows written; "" only shows', choices=("", *TARGETS)),
        "side": Field("better", "of a pair, with to=instructions", choices=SIDES),
        "distinct": Field(False, "drop rows that came before; prompts always are distinct"),
        "generator": Field("", "the model's name in rows for alpaca_eval that have none"),
    },
}
FIELDS = collect_fields(GROUPS, READING, first="input output limit samples tokenizer to")


def get_config():
    return make_config(FIELDS)
