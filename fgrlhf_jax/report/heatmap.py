"""Responses with every token's reward as its colour: a page, a picture, or text for a terminal.

Pure rendering. A row is a dict with ``instruction``, ``input`` and ``sides``; a side has
``label``, ``tokens`` (strings that concatenate to the response), ``rewards`` and ``changed``,
one of each a token. Colours go from red (low) over none (0) to green (high). A changed token is
underlined, or struck through on the side labelled ``original``, where the edit took it away.
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
    """The |reward| of the strongest colour: the 98th percentile, for outliers pale the rest."""
    sizes = np.abs([r for row in rows for side in row["sides"] for r in side["rewards"]])
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    return float(np.quantile(sizes, 0.98)) if sizes.size else 1.0


def to_html(rows: Sequence[Mapping], *, title: str) -> str:
    """A page that loads nothing: no script, no font, no network. One scale for all its rows."""
    limit = colour_limit(rows)
    rows = [{**row, "sides": [render_side(side, limit) for side in row["sides"]]} for row in rows]
    values = {"title": title, "limit": limit, "rows": rows, "harmless": HARMLESS}
    return render_page(ASSETS, "heatmap.html", ["heatmap.css", "heatmap_page.css"], **values)


def to_terminal(row: Mapping, *, colour: bool, limit: float | None = None) -> str:
    """One row: running text on coloured ground, or without colour a line for each token.

    Args:
      row: as above.
      colour: use 24-bit ANSI colours.
      limit: reward with the strongest colour; by default the row's own ``colour_limit``.
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
    changed = any(any(side["changed"]) for side in row["sides"])
    scale = colours if colour else "* changed by the edit" if changed else ""
    return "\n".join([*lines, *(["", scale] if scale else []), ""])


def to_svg(rows: Sequence[Mapping], *, columns: int = 92) -> str:
    """The same as one picture, for pages that show images only; ``columns`` characters wide."""
    limit = colour_limit(rows)
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
                red, green, blue = _ground(token["strength"])
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
    """A side with its tokens as ``html``; ``numbered`` has each token's number below it."""
    side = _side(side, limit) | {"numbered": numbered}
    return side | {"html": ENVIRONMENT.get_template(f"{ASSETS}/tokens.html").module.tokens(side)}


def _side(side: Mapping, limit: float) -> dict:
    """What all renderings of a side need; the same number of tokens, rewards and changed."""
    tokens, rewards = [], side["rewards"]
    digits = max(2, 1 - math.floor(math.log10(limit)))
    for text, reward, changed in zip(side["tokens"], rewards, side["changed"], strict=True):
        # -1 ... 1; 0 (no colour) for what is not a number.
        strength = 0.0 if math.isnan(reward) else max(-1.0, min(1.0, reward / limit))
        shown = {"text": text.translate(_VISIBLE) or "⋯", "changed": changed}
        number = "–" if math.isnan(reward) else f"{reward:+z.{digits}f}".replace("-", "−")
        tokens.append({**shown, "reward": reward, "strength": strength, "number": number})
    mean = sum(rewards) / len(rewards) if rewards else 0.0
    return {
        "label": side["label"].translate(HARMLESS),
        "summary": f"{len(tokens)} tokens, sum {sum(rewards):+.3f}, mean {mean:+.4f}",
        "style": "removed" if side["label"] == REMOVED else "added",
        "tokens": tokens,
    }


def _ground(strength: float) -> list[int]:
    """Red, green and blue (0 to 255) behind a token."""
    end = _GREEN if strength > 0 else _RED
    return [round(p + abs(strength) * (e - p)) for p, e in zip(_PAPER, end, strict=True)]


def _ansi(token: Mapping, style: str) -> str:
    ground = _ground(token["strength"])
    line = {"removed": ";9", "added": ";4"}[style] if token["changed"] else ""
    codes = f"\x1b[30;48;2;{ground[0]};{ground[1]};{ground[2]}{line}m"
    # The ground must not run on to the end of the line.
    return codes + token["text"].replace("\n", f"\x1b[0m\n{codes}") + "\x1b[0m"
