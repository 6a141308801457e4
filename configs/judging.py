"""The fields of a judge: of ``launch.evaluate`` and ``launch.collect_preferences``."""

from ml_collections import ConfigDict

from configs import asking


def add_judge(config: ConfigDict) -> None:
    """Adds them."""
    config.judge = "llm"  # or a Python function MODULE:FUNCTION, as fgrlhf_jax.vader:judge
    config.seed = 0  # of the order in which responses are shown, and of all that is drawn
    config.limit = 0  # pairs; 0 takes all
    # What follows is of judge=llm.
    config.both_orders = False  # ask twice; a draw unless the verdicts agree
    # FILE of jinja2 with {{ instruction }}, {{ input }}, {{ first }}, {{ second }}
    config.template_file = ""
    asking.add_model(config, max_new_tokens=512)
