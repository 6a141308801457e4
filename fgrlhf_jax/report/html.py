"""The frame of every page: it loads nothing, escapes its text, and is light or dark.

Colours are variables of the style: ``--ink`` on ``--paper``, ``--c0`` to ``--c7`` for charts.
A token is of class ``low`` (red) or ``high`` (green); how strong its colour is, is its ``--share``.
"""

from collections.abc import Sequence
from pathlib import Path

import jinja2

CHART_COLOURS = 8
# For str.translate: what would steer a terminal or turn text round does not get through.
_CONTROLS = [*range(0x20), *range(0x7F, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x206A)]
HARMLESS = dict.fromkeys(_CONTROLS, "\N{REPLACEMENT CHARACTER}") | {9: "\t", 10: "\n"}
ASSETS = "report/assets"
ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parents[1]),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render_page(folder: str, body: str, styles: Sequence[str] = (), **values) -> str:
    """A page, of a template of its body.

    Args:
      folder: of the templates, in this package.
      body: file of the HTML.
      styles: files of CSS beyond that of the frame.
      values: ``title``, and what the templates know besides.
    """
    files = [ASSETS + "/frame.css", *(f"{folder}/{style}" for style in styles)]
    frame = ENVIRONMENT.get_template(ASSETS + "/frame.html")
    return frame.render(body=f"{folder}/{body}", styles=files, **values)
