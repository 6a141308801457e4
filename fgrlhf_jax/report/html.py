"""The frame of every page: it loads nothing, escapes its text, and is light or dark.

A page brings its style, whose ``:root`` has the colours of both modes, and its body. The strength
of a token's colour is its ``--share``; red is ``--low``, green ``--high``.
"""

import jinja2

_ENVIRONMENT = jinja2.Environment(
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
"""
_TOKENS = """\
.low { background: rgb(var(--low) / var(--share)); }
.high { background: rgb(var(--high) / var(--share)); }
"""


def page(style: str, body: str, **names) -> jinja2.Template:
    """To be rendered with its ``title``; each part ends with a line end and knows ``names``."""
    source = f"{_HEAD}{style}{_TOKENS}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    return _ENVIRONMENT.from_string(source, globals=names)
