"""One or two models against a reference: what ``launch.evaluate`` needs."""

from configs.common import OVERWRITE, READING
from configs.fields import Field, collect_fields, make_config
from configs.judging import JUDGE_FIELDS

GROUPS = {
    "Files": {
        "outputs": Field(
            "",
            "FILE[,FILE] of one or two models' responses; "
            '"" and no other file: pairs of the embedded world',
        ),
        "reference": Field(
            "", "FILE of the responses that they are compared with; with edits: FOLDER"
        ),
        "annotations": Field("", "or FILE[,FILE] in alpaca_eval's format, judged already"),
        "difficulty": Field(
            "",
            "FILE.csv of alpaca_eval's instructions (its df_gamed.csv), for the length-controlled "
            "win rate of its leaderboard",
        ),
        "edits": Field(
            "",
            "or FILE of edits: how often the policy model=FOLDER prefers what was put in to what "
            "was taken out, before and after where reference=FOLDER is another policy",
        ),
        "fluency_model": Field(
            "",
            "FOLDER of an untouched model: mean log-probability a token of the responses under it",
        ),
        "output": Field("", "FILE.json; FILE.annotations.json beside it has every verdict"),
        "overwrite": OVERWRITE,
        "common": Field(False, "compare the prompts that all have; False refuses others"),
    }
}
FIELDS = collect_fields(
    GROUPS,
    READING,
    JUDGE_FIELDS,
    defaults={"max_new_tokens": 512},
    first="outputs reference annotations edits output judge "
    "limit both_orders provider model max_new_tokens dry_run",
)


def get_config():
    return make_config(FIELDS)
