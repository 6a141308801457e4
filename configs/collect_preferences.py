"""Fields of ``launch.collect_preferences``, in which a judge labels pairs of responses."""

from configs.common import OVERWRITE, READING
from configs.fields import Field, collect_fields, make_config
from configs.judging import JUDGE_FIELDS

GROUPS = {
    "Preferences": {
        "input": Field(
            "",
            "FILE of pairs (output_1, output_2) or of several responses per prompt "
            '(launch.generate with samples=2); "": pairs of the embedded world',
        ),
        "output": Field("", "FILE.jsonl; FILE.annotations.json has every verdict"),
        "overwrite": OVERWRITE,
        "label_noise": Field(
            0.0, "share of labels to flip; AlpacaFarm's annotators: 0.25", at_least=0, at_most=0.5
        ),
        "draws": Field("drop", "drop draws, or label them at random", choices=("drop", "random")),
    }
}
FIELDS = collect_fields(
    GROUPS,
    READING,
    JUDGE_FIELDS,
    defaults={"max_new_tokens": 512},
    first="input output judge limit both_orders provider model max_new_tokens dry_run",
)


def get_config():
    return make_config(FIELDS)
