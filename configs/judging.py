"""The fields of a judge: of ``launch.evaluate`` and ``launch.collect_preferences``."""

from configs.asking import model_fields
from configs.fields import Field, group

FIELDS = {
    **group(
        "Judge",
        {
            "judge": Field(
                "llm",
                "llm, or a Python function MODULE:FUNCTION as "
                "fgrlhf_jax.feedback.judges.vader:judge",
                first=True,
            ),
            "seed": Field(0, "of the order in which responses are shown", at_least=0),
            "limit": Field(0, "pairs; 0: all", at_least=0, first=True),
            "both_orders": Field(
                False, "ask twice; a draw unless the verdicts agree", first=True
            ),
            "template_file": Field(
                "",
                "FILE of jinja2 with {{ instruction }}, {{ input }}, {{ first }}, {{ second }}",
            ),
        },
    ),
    **model_fields(max_new_tokens=512),
}
