"""The statistics of edits (report.py) and examples of them as one HTML page that loads nothing."""

from collections.abc import Mapping

from fgrlhf_jax.feedback.edits.report import format_figures, printable
from fgrlhf_jax.report import html


def render_page(statistics: Mapping, *, title: str, source: str) -> str:
    """HTML of what :func:`compute_statistics` returned; `source` is where the edits are from."""
    return html.render_page(
        "feedback/edits/assets",
        "edits.html",
        ["edits.css"],
        title=printable(title),
        source=printable(source),
        figures=format_figures(statistics),
        examples=statistics["examples"],
    )
