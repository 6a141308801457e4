"""A language model edits responses minimally: what ``launch.collect_edits`` needs."""

from configs.asking import MODEL_FIELDS
from configs.common import READING
from configs.fields import Field, collect_fields, make_config
from fgrlhf_jax.feedback.edits.request import SIDES, TEMPLATES

GROUPS = {
    "Edits": {
        "input": Field(
            "",
            "FILE[,FILE…] or dataset ids: responses (instruction, input, output), "
            "preferences, or edits, whose originals are edited again; "
            '"": responses of the embedded world',
        ),
        "output": Field(
            "", "FILE.jsonl of edits; beside it FILE.rejected.jsonl: replies that are none, and why"
        ),
        "side": Field("worse", "which response of a preference is edited", choices=SIDES),
        "limit": Field(0, "rows; 0: all", at_least=0),
        "max_change_ratio": Field(
            0.5, "share of the words; an edit beyond it is set aside; 1: none is", at_least=0
        ),
        "template": Field(
            "",
            "form: the prompt asks for a reply in a form; paper: the paper's, which asks for none; "
            '"": form, with provider=local paper, since small models keep to no form',
            choices=("", *TEMPLATES),
        ),
        "template_file": Field(
            "",
            "FILE of jinja2 in place of it: {{ response }}, {{ instruction }}, {{ input }} and "
            "{{ reply_form }}, which asks for the form",
        ),
    }
}
FIELDS = collect_fields(
    GROUPS,
    READING,
    MODEL_FIELDS,
    defaults={"max_new_tokens": 1024},
    first="input output limit provider model max_new_tokens dry_run",
)


def get_config():
    return make_config(FIELDS)
