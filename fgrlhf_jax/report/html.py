"""The template of every page: self-contained, with escaped text, in light or dark mode.

CSS variables hold the colours: ``--ink`` on ``--paper``, ``--c0`` to ``--c7`` for charts. A token
has the class ``low`` (red) or ``high`` (green); ``--share`` is the strength of its colour.
"""

from collections.abc import Sequence
from pathlib import Path

import jinja2

CHART_COLOURS = 8
# For str.translate: replaces control characters, which could steer a terminal or reverse text.
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
    """The HTML of a page whose template ``body`` and further CSS ``styles`` are in ``folder``.

    ``folder`` is relative to this package; ``values`` are ``title`` and the template's variables.
    """
    files = [ASSETS + "/frame.css", *(f"{folder}/{style}" for style in styles)]
    frame = ENVIRONMENT.get_template(ASSETS + "/frame.html")
    return frame.render(body=f"{folder}/{body}", styles=files, **values)
