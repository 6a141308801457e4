"""The fields of a judge: of ``launch.evaluate`` and ``launch.collect_preferences``."""

from configs.asking import MODEL_FIELDS
from configs.fields import Field

JUDGE_FIELDS = {
    "Judge": {
        "judge": Field(
            "llm",
            "llm, or a Python function MODULE:FUNCTION as fgrlhf_jax.feedback.judges.vader:judge",
        ),
        "seed": Field(0, "of the order in which responses are shown", at_least=0),
        "limit": Field(0, "pairs; 0: all", at_least=0),
        "both_orders": Field(False, "ask twice; a draw unless the verdicts agree"),
        "template_file": Field(
            "",
            "FILE of jinja2 with {{ instruction }}, {{ input }}, {{ first }}, {{ second }} and "
            "{{ reply_form }}, which asks for the verdict; without it the reply must be a label "
            "and nothing else",
        ),
        "labels": Field("A,B,tie", "of a verdict: the first, the second, a draw"),
    },
    **MODEL_FIELDS,
}
