"""Responses with tokens coloured by their rewards: as an HTML page, SVG or terminal text.

A row is a dict with ``instruction``, ``input`` and ``sides``. A side has ``label`` and, per token,
``tokens`` (strings that concatenate to the response), ``rewards`` and ``changed``; ``finished`` is
False if it was cut. Colours: red for negative rewards, none for 0, green for positive rewards. A
changed token is underlined; on the side labelled ``original``, where the edit removed it, it is
struck through.
"""

import html
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fgrlhf_jax.report.html import ASSETS, ENVIRONMENT, HARMLESS, render_page

REMOVED = "original"

_RED, _GREEN, _PAPER = (225, 75, 65), (60, 170, 85), (244, 244, 244)

_VISIBLE = HARMLESS | {9: "⇥\t", 10: "↵\n"}


def colour_limit(rows: Iterable[Mapping]) -> float:
    """The |reward| with the strongest colour: the 98th percentile, so outliers do not set it."""
    sizes = np.abs([r for row in rows for side in row["sides"] for r in side["rewards"]])
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    return float(np.quantile(sizes, 0.98)) if sizes.size else 1.0


def to_html(rows: Sequence[Mapping], *, title: str) -> str:
    """A self-contained page: no script, font or network access. All rows share one scale."""
    limit, changed = colour_limit(rows), any(map(_is_edited, rows))
    rows = [{**row, "sides": [render_side(side, limit) for side in row["sides"]]} for row in rows]
    values = {"title": title, "limit": limit, "rows": rows, "harmless": HARMLESS}
    values["changed"] = changed
    return render_page(ASSETS, "heatmap.html", ["heatmap.css", "heatmap_page.css"], **values)


def to_terminal(row: Mapping, *, colour: bool, limit: float | None = None) -> str:
    """One row as text with background in 24-bit colours, or without colour one line per token.

    ``limit`` is the |reward| with the strongest colour, by default the row's ``colour_limit``.
    """
    limit = limit or colour_limit([row])
    lines = [row[name].translate(HARMLESS) for name in ("instruction", "input") if row[name]]
    for side in row["sides"]:
        side = _side(side, limit)
        lines += ["", f"{side['label']}: {side['summary']}"]
        if colour:
            lines += ["".join(_ansi(token, side["style"]) for token in side["tokens"])]
        else:
            for token in side["tokens"]:
                text = token["text"].replace("\n", "").replace("\t", "")
                mark = "*" if token["changed"] else " "
                lines.append(f'{token["reward"]:+9.3f} {mark} "{text}"')
    colours = f"red -{limit:.2f} ... 0 ... +{limit:.2f} green"
    scale = colours if colour else "* changed by the edit" if _is_edited(row) else ""
    return "\n".join([*lines, *(["", scale] if scale else []), ""])


def to_svg(rows: Sequence[Mapping]) -> str:
    """The rows as one SVG image, 92 characters wide."""
    limit, columns = colour_limit(rows), 92
    column, line, lines, shapes = 8.0, 26, 1, []

    def write(text: str, at: int, style: str) -> None:
        text = text.replace("\n", "").replace("\t", "").replace(" ", "\N{NO-BREAK SPACE}")
        shapes.append(
            f'<text x="{20 + at * column:g}" y="{lines * line}" {style}>{html.escape(text)}</text>'
        )

    for row in rows:
        prompt = " ".join(f"{row['instruction']} {row['input']}".translate(HARMLESS).split())
        for text in textwrap.wrap(prompt, columns):
            write(text, 0, 'font-weight="bold"')
            lines += 1
        for side in (_side(side, limit) for side in row["sides"]):
            write(f"{side['label']}: {side['summary']}", 0, 'fill="#666" font-size="11"')
            lines, at = lines + 1, 0
            for token in side["tokens"]:
                width = len(token["text"])
                if at and at + width > columns:
                    lines, at = lines + 1, 0
                red, green, blue = _background(token["strength"])
                shapes.append(
                    f'<rect x="{20 + at * column:g}" y="{lines * line - 16}" rx="3" height="22" '
                    f'width="{width * column:g}" fill="rgb({red},{green},{blue})"/>'
                )
                marks = {"removed": "line-through", "added": "underline"}
                mark = f'text-decoration="{marks[side["style"]]}"' if token["changed"] else ""
                write(token["text"], at, mark)
                at += width
            lines += 1
    width, height = 40 + columns * column, lines * line
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height}" '
        f'viewBox="0 0 {width:g} {height}" font-family="monospace" font-size="13.3">'
        '<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(shapes) + "\n</svg>\n"
    )


def render_side(side: Mapping, limit: float, *, numbered: bool = False) -> dict:
    """A side with its tokens as ``html``; ``numbered`` prints each token's reward below it."""
    side = _side(side, limit) | {"numbered": numbered}
    return side | {"html": ENVIRONMENT.get_template(f"{ASSETS}/tokens.html").module.tokens(side)}


def _is_edited(row: Mapping) -> bool:
    return any(any(side["changed"]) for side in row["sides"])


def _side(side: Mapping, limit: float) -> dict:
    """Per token text, colour, formatted reward; ValueError if the lists differ in length."""
    tokens, rewards = [], side["rewards"]
    digits = max(2, 1 - math.floor(math.log10(limit)))
    for text, reward, changed in zip(side["tokens"], rewards, side["changed"], strict=True):
        # In [-1, 1]; 0 (no colour) for NaN.
        strength = 0.0 if math.isnan(reward) else max(-1.0, min(1.0, reward / limit))
        shown = {"text": text.translate(_VISIBLE) or "⋯", "changed": changed}
        number = "–" if math.isnan(reward) else f"{reward:+z.{digits}f}".replace("-", "−")
        tokens.append({**shown, "reward": reward, "strength": strength, "number": number})
    mean = sum(rewards) / len(rewards) if rewards else 0.0
    cut = "" if side.get("finished", True) else ", cut at the length limit"
    return {
        "label": side["label"].translate(HARMLESS),
        "summary": f"{len(tokens)} tokens, sum {sum(rewards):+.3f}, mean {mean:+.4f}{cut}",
        "style": "removed" if side["label"] == REMOVED else "added",
        "tokens": tokens,
    }


def _background(strength: float) -> list[int]:
    """Background colour of a token: red, green and blue in 0 to 255."""
    end = _GREEN if strength > 0 else _RED
    return [round(p + abs(strength) * (e - p)) for p, e in zip(_PAPER, end, strict=True)]


def _ansi(token: Mapping, style: str) -> str:
    background = _background(token["strength"])
    line = {"removed": ";9", "added": ";4"}[style] if token["changed"] else ""
    codes = f"\x1b[30;48;2;{background[0]};{background[1]};{background[2]}{line}m"
    # Reset at line breaks: otherwise the background fills the rest of the line.
    return codes + token["text"].replace("\n", f"\x1b[0m\n{codes}") + "\x1b[0m"
