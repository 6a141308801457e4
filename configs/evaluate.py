"""Fields of ``launch.evaluate``, which compares one or two models with a reference."""

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
        "reference": Field("", "FILE of the reference's responses; with edits: FOLDER of a policy"),
        "annotations": Field("", "alternatively FILE[,FILE] of verdicts in alpaca_eval's format"),
        "difficulty": Field(
            "",
            "FILE.csv of alpaca_eval's instructions (its df_gamed.csv), for the length-controlled "
            "win rate of its leaderboard",
        ),
        "edits": Field(
            "",
            "alternatively FILE of edits: how often the policy model=FOLDER prefers inserted to "
            "removed text; also for a second policy, reference=FOLDER",
        ),
        "fluency_model": Field(
            "", "FOLDER of a base model: also report its mean log-probability per response token"
        ),
        "output": Field("", "FILE.json; FILE.annotations.json has every verdict"),
        "overwrite": OVERWRITE,
        "common": Field(False, "compare only prompts that all files have; False: an error"),
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
