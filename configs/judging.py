"""Fields of a judge, for ``launch.evaluate`` and ``launch.collect_preferences``."""

from configs.fields import Field
from configs.llm import MODEL_FIELDS

JUDGE_FIELDS = {
    "Judge": {
        "judge": Field(
            "llm",
            "llm, or a Python function MODULE:FUNCTION such as "
            "fgrlhf_jax.feedback.judges.vader:judge",
        ),
        "seed": Field(0, "seed of the order in which responses are shown", at_least=0),
        "limit": Field(0, "number of pairs; 0: all", at_least=0),
        "both_orders": Field(False, "judge in both orders; a draw unless the verdicts agree"),
        "template_file": Field(
            "",
            "FILE of your own prompt, in jinja2, with {{ instruction }}, {{ input }}, {{ first }}, "
            "{{ second }} and {{ reply_form }}, the text that asks for the verdict; without "
            "{{ reply_form }} the reply must consist of a label",
        ),
        "labels": Field("A,B,tie", "labels of a verdict: first better, second better, draw"),
    },
    **MODEL_FIELDS,
}
