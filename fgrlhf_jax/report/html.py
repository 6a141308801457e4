"""The frame of every page: it loads nothing, escapes its text, and is light or dark.

Colours are variables of the style: ``--ink`` on ``--paper``, ``--c0`` to ``--c7`` for charts.
A token is of class ``low`` (red) or ``high`` (green); how strong its colour is, is its ``--share``.
"""

import jinja2

CHART_COLOURS = 8
# For str.translate: what would steer a terminal or turn text round does not get through.
_CONTROLS = [*range(0x20), *range(0x7F, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x206A)]
HARMLESS = dict.fromkeys(_CONTROLS, "\N{REPLACEMENT CHARACTER}") | {9: "\t", 10: "\n"}
ENVIRONMENT = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_HEAD = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
:root { --ink: #1c1e21; --soft: #63686f; --paper: #fff; --tint: #f5f6f8; --edge: #d9dce1;
  --low: 222 62 52; --high: 34 150 76;
  --c0: #0067a8; --c1: #c85200; --c2: #00825f; --c3: #a8327a; --c4: #967000; --c5: #5b54c9;
  --c6: #2a93b8; --c7: #7a6a58; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #9da3ab; --paper: #15171a; --tint: #1e2125; --edge: #383d44;
    --low: 235 80 72; --high: 46 168 92;
    --c0: #5cb2ee; --c1: #ff9450; --c2: #35c99b; --c3: #ec86c2; --c4: #dfb43c; --c5: #a9a3ff;
    --c6: #6fd3f2; --c7: #c4b29e; } }
* { box-sizing: border-box; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
body { margin: 0 auto; padding: 3rem 1.25rem 5rem; max-width: 62rem; color: var(--ink);
  background: var(--paper); font: 16px/1.6 system-ui, "Segoe UI", Roboto, "Liberation Sans",
  sans-serif; -webkit-text-size-adjust: 100%; }
.soft, figcaption { color: var(--soft); font-size: .875rem; }
table { border-collapse: collapse; font-size: .86rem; line-height: 1.4; min-width: 100%;
  font-variant-numeric: tabular-nums; }
th, td { padding: .42rem .7rem; text-align: right; border-bottom: 1px solid var(--edge); }
thead th { vertical-align: bottom; color: var(--soft); font-weight: 600;
  border-bottom: 1.5px solid var(--ink); }
th:first-child { text-align: left; padding-left: 0; }
article { border-top: 1px solid var(--edge); padding: 1rem 0; }
summary { cursor: pointer; color: var(--soft); font-size: .9rem; }
.low { background: rgb(var(--low) / var(--share)); }
.high { background: rgb(var(--high) / var(--share)); }
"""


def page_template(style: str, body: str, **names) -> jinja2.Template:
    """A page, to be rendered with its ``title``.

    Args:
      style, body: CSS beyond that of the frame, and HTML, as templates that end with a line end.
      names: what they know besides what they are rendered with.
    """
    source = f"{_HEAD}{style}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    return ENVIRONMENT.from_string(source, globals=names)
