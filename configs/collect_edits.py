"""A language model edits responses minimally: what ``launch.collect_edits`` needs."""

from configs.asking import model_fields
from configs.fields import Field, group, make_config
from fgrlhf_jax.feedback.edits.request import SIDES

FIELDS = {
    **group(
        "Edits",
        {
            "input": Field(
                "",
                "FILE[,FILE…] or dataset ids: responses (instruction, input, output), "
                "preferences, or edits, whose originals are edited again; "
                '"": responses of the embedded world',
                first=True,
            ),
            "output": Field(
                "",
                "FILE.jsonl of edits; beside it FILE.rejected.jsonl: replies that are none, "
                "and why",
                first=True,
            ),
            "side": Field("worse", "which response of a preference is edited", choices=SIDES),
            "limit": Field(0, "rows; 0: all", at_least=0, first=True),
            "max_change_ratio": Field(
                0.5,
                "share of the words; an edit beyond it is set aside; 1 keeps all",
                at_least=0,
            ),
            "template_file": Field(
                "", "FILE of jinja2 with {{ response }}, {{ instruction }}, {{ input }}"
            ),
        },
    ),
    **model_fields(max_new_tokens=1024),
}


def get_config():
    return make_config(FIELDS)
