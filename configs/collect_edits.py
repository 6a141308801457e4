"""Fields of ``launch.collect_edits``, in which a language model edits responses minimally."""

from configs.common import READING
from configs.fields import Field, collect_fields, make_config
from configs.llm import MODEL_FIELDS
from fgrlhf_jax.feedback.edits.request import SIDES, TEMPLATES

GROUPS = {
    "Edits": {
        "input": Field(
            "",
            "FILE[,FILE…] or dataset ids: responses (instruction, input, output), "
            "preferences, or edits, whose originals are edited anew; "
            '"": responses of the embedded world',
        ),
        "output": Field(
            "", "FILE.jsonl of edits; FILE.rejected.jsonl has unusable replies and the reasons"
        ),
        "side": Field("worse", "which response of a preference is edited", choices=SIDES),
        "limit": Field(0, "rows; 0: all", at_least=0),
        "max_change_ratio": Field(
            0.5, "share of changed words above which an edit is rejected; 1: never", at_least=0
        ),
        "template": Field(
            "",
            "form: a prompt that asks for a reply format; paper: the paper's prompt, without one; "
            '"": form, but paper with provider=local, since small models ignore formats',
            choices=("", *TEMPLATES),
        ),
        "template_file": Field(
            "",
            "FILE of your own prompt, in jinja2, with {{ response }}, {{ instruction }}, "
            "{{ input }} and {{ reply_form }}, the text that asks for the format",
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
