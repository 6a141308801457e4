"""The edits of a file in figures: how minimal they are, of which kinds, by whom, and examples.

Records in, a dict out, which is the report's JSON; edit_page.py shows the same dict as a page, and
`table` as text for a terminal.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fgrlhf_jax.data.records import Edit
from fgrlhf_jax.feedback.edits import minimality

# What is measured of an edit, as figures call it and as people do.
MEASURES = {
    "word_change_ratio": "word change ratio",
    "token_change_ratio": "token change ratio",
    "length_change": "length change, words",
    "words_original": "words of the original",
    "words_edited": "words of the edited",
    "changes": "changes in a response",
}
KINDS = {
    "insert": "only put in",
    "delete": "only take out",
    "replace": "only replace",
    "mixed": "do several of these",
    "none": "change no word",
}
DRAWN = ("word_change_ratio", "token_change_ratio", "length_change")  # as histograms
QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}
_SHARES, _NUMBERS = 20, 30  # bins
_BAR = 40  # characters of the longest bar in a terminal

# What would steer a terminal or turn text round does not get through.
_CONTROLS = [*range(0x20), *range(0x7F, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x206A)]
_HARMLESS = dict.fromkeys(_CONTROLS, "\N{REPLACEMENT CHARACTER}") | {9: "\t", 10: "\n"}


def figures(
    rows: Sequence[Edit],
    *,
    annotators: Sequence[str] = (),
    encode: Callable[[str], Sequence[int]] | None = None,
    max_change_ratio: float = 1.0,
    aside: Mapping[str, int] | None = None,
    examples: int = 3,
) -> dict:
    """All figures of some edits, ready for JSON.

    Args:
      annotators: who made each row, "" where nobody knows.
      encode: text to token ids; without it there are no token change ratios.
      max_change_ratio: as in :func:`minimality.find_fault`; rows beyond it are counted, not left
        out.
      aside: reason -> how many rows were set aside for it when the edits were collected.
      examples: how many of each sort are shown.

    Returns:
      n, kinds {kind: n}, shares {kind: share of n}, each of `MEASURES` as {"mean", "median", …},
      histograms {measure: {"edges", "counts"}} (the first and the last bin hold what lies beyond
      too), faults {fault: n}, aside, annotators {name: the same, without histograms}, examples,
      and rows: the figures of each.
    """
    measured = [minimality.measure(row.original, row.edited, encode) for row in rows]
    faults = [minimality.find_fault(row.original, row.edited, max_change_ratio) for row in rows]
    names = [shown(name) for name in annotators] or [""] * len(rows)
    by_name: dict[str, list[minimality.EditMetrics]] = {}
    for name, found in zip(names, measured, strict=True):
        by_name.setdefault(name, []).append(found)
    return {
        **_summary(measured),
        "histograms": {
            measure: histogram(measure, [getattr(found, measure) for found in measured])
            for measure in DRAWN
            if measure != "token_change_ratio" or encode
        },
        "max_change_ratio": max_change_ratio,
        "faults": {fault: faults.count(fault) for fault in minimality.FAULTS},
        "aside": dict(aside or {}),
        "annotators": (
            {name or "unknown": _summary(some) for name, some in sorted(by_name.items())}
            if any(names)
            else {}
        ),
        "examples": _examples(rows, names, measured, examples),
        "rows": [
            {"row": n, "id": row.id, "annotator": name, **found._asdict(), "fault": fault}
            for n, (row, name, found, fault) in enumerate(
                zip(rows, names, measured, faults, strict=True), 1
            )
        ],
    }


def shown(text: str) -> str:
    """Text as it may be written to a terminal or a page."""
    return text.translate(_HARMLESS)


def _summary(measured: Sequence[minimality.EditMetrics]) -> dict:
    kinds = Counter(found.kind for found in measured)
    summary = {
        "n": len(measured),
        "kinds": {kind: kinds[kind] for kind in minimality.KINDS},
        "shares": {kind: kinds[kind] / max(1, len(measured)) for kind in minimality.KINDS},
    }
    for measure in MEASURES:
        values = [getattr(found, measure) for found in measured]
        if values and None not in values:
            summary[measure] = {
                "mean": float(np.mean(values)),
                **{name: float(np.quantile(values, q)) for name, q in QUANTILES.items()},
            }
    return summary


def histogram(measure: str, values: Sequence[float]) -> dict[str, list]:
    """Counts between edges: shares in twentieths; whole numbers in at most thirty bins or so."""
    if measure == "length_change":
        low, high = np.quantile(values, [0.01, 0.99]) if values else (0, 0)
        wanted = max(1, (high - low) / _NUMBERS)
        power = 10 ** math.floor(math.log10(wanted))
        width = next(m * power for m in (1, 2, 5, 10) if m * power >= wanted)
        first, last = math.floor(low / width), math.floor(high / width) + 1
        edges = [width * k for k in range(first, last + 1)]
    else:
        edges = [k / _SHARES for k in range(_SHARES + 1)]
    # Edges such as 0.15 are a hair above the shares they mean.
    inside = np.clip(np.add(values, 1e-9), edges[0], np.nextafter(edges[-1], -np.inf))
    counts, _ = np.histogram(inside, edges)
    return {"edges": edges, "counts": counts.tolist()}


def _examples(rows, names, measured, count: int) -> list[dict]:
    """Some of the least, the middle and the most changed rows, none of them twice."""
    order = sorted(range(len(rows)), key=lambda k: (measured[k].word_change_ratio, k))
    middle = sorted(range(len(order)), key=lambda place: abs(place - (len(order) - 1) / 2))
    sorts = {"least": order, "median": [order[place] for place in middle], "most": order[::-1]}
    examples, used = [], set()
    for sort, candidates in sorts.items():
        chosen = [k for k in candidates if k not in used][:count]
        used |= set(chosen)
        for rank, k in enumerate(chosen, 1):
            original, edited = minimality.mark_changes(rows[k].original, rows[k].edited)
            examples.append(
                {
                    "sort": sort,
                    "rank": rank,
                    "row": k + 1,
                    "id": shown(rows[k].id),
                    "annotator": names[k],
                    "instruction": shown(rows[k].instruction),
                    "input": shown(rows[k].input),
                    "original": [(shown(text), changed) for text, changed in original],
                    "edited": [(shown(text), changed) for text, changed in edited],
                    "kind": measured[k].kind,
                    "word_change_ratio": measured[k].word_change_ratio,
                }
            )
    return examples


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def kinds_line(found: Mapping) -> str:
    """How many edits there are of each kind, in words."""
    return ", ".join(
        f"{n} {KINDS[kind]} ({percent(found['shares'][kind])})"
        for kind, n in found["kinds"].items()
        if n or kind != "none"
    )


def number(value: float, measure: str) -> str:
    return f"{value:.3f}" if measure.endswith("ratio") else f"{value:.1f}"


def notes(found: Mapping) -> list[str]:
    """What a filter would say, and what one has said already."""
    limit = found["max_change_ratio"]
    counted = [f"{n} {fault}" for fault, n in found["faults"].items() if n]
    what = ", ".join(counted) or "none"
    lines = [f"rows that a filter with max_change_ratio={limit:g} would set aside: {what}"]
    if found["aside"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in found["aside"].items())
        lines.append(f"set aside when they were collected: {reasons}")
    return lines


def table(found: Mapping, *, colour: bool) -> str:
    """The report for a terminal; without colours, changes are [-taken out-] and {+put in+}."""
    lines = [f"{found['n']} edits: {kinds_line(found)}", ""]
    columns = ["mean", *QUANTILES]
    lines.append(f"{'':<24}" + "".join(f"{name:>9}" for name in columns))
    for measure, name in MEASURES.items():
        if measure in found:
            cells = [number(found[measure][column], measure) for column in columns]
            lines.append(f"{name:<24}" + "".join(f"{cell:>9}" for cell in cells))
    for measure, drawn in found["histograms"].items():
        lines += ["", MEASURES[measure], *bars(drawn)]
    if found["annotators"]:
        width = max(10, *map(len, found["annotators"])) + 2
        heads = [kind for kind in minimality.KINDS if kind != "none"]
        lines += ["", f"{'annotator':<{width}}{'n':>7}{'median ratio':>14}"]
        lines[-1] += "".join(f"{kind:>10}" for kind in heads)
        for name, some in found["annotators"].items():
            median = number(some["word_change_ratio"]["median"], "ratio")
            cells = "".join(f"{percent(some['shares'][kind]):>10}" for kind in heads)
            lines.append(f"{name:<{width}}{some['n']:>7}{median:>14}{cells}")
    lines += ["", *notes(found)]
    for example in found["examples"]:
        lines += ["", *_example(example, colour)]
    return "\n".join(lines)


def bars(drawn: Mapping) -> list[str]:
    """A line a bin, from the first to the last that is not empty."""
    counts, texts = drawn["counts"], bins(drawn)
    filled = [k for k, count in enumerate(counts) if count]
    if not filled:
        return []
    lines = []
    for k in range(filled[0], filled[-1] + 1):
        bar = "█" * max(round(_BAR * counts[k] / max(counts)), bool(counts[k]))
        lines.append(f"{texts[k]:>16}  {bar} {counts[k]}")
    return lines


def whole(drawn: Mapping) -> bool:
    """Whether a histogram counts whole numbers."""
    return isinstance(drawn["edges"][0], int)


def bins(drawn: Mapping) -> list[str]:
    """What each bin holds, as text."""
    pairs = list(itertools.pairwise(drawn["edges"]))
    if not whole(drawn):
        return [f"{a:.2f} – {b:.2f}" for a, b in pairs]
    texts = [f"{a}" if b - a == 1 else f"{a} … {b - 1}" for a, b in pairs]
    if len(texts) > 1:
        texts[0], texts[-1] = f"≤ {pairs[0][1] - 1}", f"≥ {pairs[-1][0]}"
    return texts


def _example(example: Mapping, colour: bool) -> list[str]:
    name = " ".join(filter(None, [example["id"], example["annotator"]]))
    head = (
        f"-- {example['sort']} changed: row {example['row']}{f' ({name})' if name else ''}, "
        f"{example['kind']}, {example['word_change_ratio']:.3f}"
    )
    marks = {"original": ("[-", "-]"), "edited": ("{+", "+}")}
    if colour:
        marks = {"original": ("\x1b[31;9m", "\x1b[0m"), "edited": ("\x1b[32;4m", "\x1b[0m")}
    sides = [
        f"{side:<9} "
        + "".join(f"{start}{text}{end}" if changed else text for text, changed in example[side])
        for side, (start, end) in marks.items()
    ]
    prompt = f"{example['instruction']}\n{example['input']}".strip()
    return [head, f"{'prompt':<9} {_short(prompt)}", *sides]


def _short(text: str, most: int = 200) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
