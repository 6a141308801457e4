"""Statistics of the edits in a file: how minimal they are, their kinds and annotators, examples.

:func:`compute_statistics` returns the report as a dict for JSON. :func:`render_page` renders it as
HTML, :func:`format_figures` and :func:`format_examples` as text for a terminal.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fgrlhf_jax.data import words
from fgrlhf_jax.data.records import Edit, shown_prompt
from fgrlhf_jax.feedback.edits import minimality
from fgrlhf_jax.report import html

# metric of an edit -> its label in a report
MEASURES = {
    "word_change_ratio": "word change ratio",
    "token_change_ratio": "token change ratio",
    "length_change": "length change, words",
    "words_original": "words of the original",
    "words_edited": "words of the edited",
    "changes": "changes in a response",
}
HISTOGRAMS = ("word_change_ratio", "token_change_ratio", "length_change")
QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}
_RATIO_BINS, _NUMBER_BINS = 20, 30
_BAR_WIDTH = 40  # characters of the longest bar in a terminal


def compute_statistics(
    rows: Sequence[Edit],
    *,
    annotators: Sequence[str] = (),
    encode: Callable[[str], Sequence[int]] | None = None,
    max_change_ratio: float = 1.0,
    rejected: Mapping[str, int] | None = None,
    examples: int = 3,
) -> dict:
    """Returns the statistics of edits as a dict for JSON.

    Args:
      annotators: the annotator of each edit, "" if unknown.
      encode: function from a text to token ids; without it there are no token change ratios.
      max_change_ratio: as in :func:`minimality.find_fault`; edits above it are counted.
      rejected: reason -> number of rows that were rejected when the edits were collected.
      examples: number of examples of each sort.

    Returns:
      n, kinds {kind: n}, shares {kind: share of n}, each of `MEASURES` as {"mean", "median", …},
      histograms {measure: {"edges", "counts"}} (the first and the last bin include values beyond
      them), faults {fault: n}, aside (``rejected``), annotators {name: n, kinds, shares and
      measures}, examples, and rows: the metrics of each.
    """
    metrics = [minimality.measure(row.original, row.edited, encode) for row in rows]
    faults = [
        minimality.find_fault(row.original, row.edited, max_change_ratio, edit.word_change_ratio)
        for row, edit in zip(rows, metrics, strict=True)
    ]
    names = [name.translate(html.HARMLESS) for name in annotators] or [""] * len(rows)
    by_annotator = {
        name or "unknown": _summary(list(itertools.compress(metrics, (n == name for n in names))))
        for name in sorted({*names})
    }
    together = zip(rows, names, metrics, faults, strict=True)
    return {
        **_summary(metrics),
        "histograms": {
            measure: histogram(measure, [getattr(edit, measure) for edit in metrics])
            for measure in HISTOGRAMS
            if measure != "token_change_ratio" or encode
        },
        "max_change_ratio": max_change_ratio,
        "faults": {fault: faults.count(fault) for fault in minimality.FAULTS},
        "aside": dict(rejected or {}),
        "annotators": by_annotator if any(names) else {},
        "examples": _examples(rows, names, metrics, examples),
        "rows": [
            {"row": n, "id": row.id, "annotator": name, **edit._asdict(), "fault": fault}
            for n, (row, name, edit, fault) in enumerate(together, 1)
        ],
    }


def render_page(statistics: Mapping, *, title: str, source: str) -> str:
    """Returns a self-contained HTML page; `source` names the origin of the edits."""
    return html.render_page(
        "feedback/edits/assets",
        "edits.html",
        ["edits.css"],
        title=title.translate(html.HARMLESS),
        source=source.translate(html.HARMLESS),
        figures=format_figures(statistics),
        examples=statistics["examples"],
    )


def _summary(metrics: Sequence[minimality.EditMetrics]) -> dict:
    kinds = Counter(edit.kind for edit in metrics)
    summary = {
        "n": len(metrics),
        "kinds": {kind: kinds[kind] for kind in minimality.KINDS},
        "shares": {kind: kinds[kind] / max(1, len(metrics)) for kind in minimality.KINDS},
    }
    for measure in MEASURES:
        values = [getattr(edit, measure) for edit in metrics]
        if values and None not in values:
            quantiles = np.quantile(values, [*QUANTILES.values()]).tolist()
            summary[measure] = {"mean": float(np.mean(values))}
            summary[measure] |= dict(zip(QUANTILES, quantiles, strict=True))
    return summary


def histogram(measure: str, values: Sequence[float]) -> dict[str, list]:
    """Returns counts and bin edges: 20 bins for a ratio, about 30 of a round width for lengths."""
    if measure == "length_change":
        low, high = np.quantile(values, [0.01, 0.99]) if values else (0, 0)
        least = max(1, (high - low) / _NUMBER_BINS)
        power = 10 ** math.floor(math.log10(least))
        width = next(m * power for m in (1, 2, 5, 10) if m * power >= least)
        first, last = math.floor(low / width), math.floor(high / width) + 1
        edges = [width * k for k in range(first, last + 1)]
    else:
        edges = [k / _RATIO_BINS for k in range(_RATIO_BINS + 1)]
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return {"edges": edges, "counts": counts.tolist()}


def _examples(rows, names, metrics, count: int) -> list[dict]:
    """Returns distinct rows with the smallest, median and largest word change ratios."""
    order = sorted(range(len(rows)), key=lambda k: (metrics[k].word_change_ratio, k))
    middle = sorted(range(len(order)), key=lambda place: abs(place - (len(order) - 1) / 2))
    sorts = {"least": order, "median": [order[place] for place in middle], "most": order[::-1]}
    examples, taken = [], set()
    for sort, candidates in sorts.items():
        chosen = [k for k in candidates if k not in taken][:count]
        taken |= set(chosen)
        for rank, k in enumerate(chosen, 1):
            row, edit = rows[k], metrics[k]
            shown = row.id, *shown_prompt(row)
            id, instruction, input = (text.translate(html.HARMLESS) for text in shown)
            parts = words.mark_changes(row.original, row.edited)
            original, edited = (_side(parts, other) for other in (words.INSERTED, words.REMOVED))
            examples.append(
                {"sort": sort, "rank": rank, "row": k + 1, "annotator": names[k]}
                | {"id": id, "instruction": instruction, "input": input}
                | {"kind": edit.kind, "word_change_ratio": edit.word_change_ratio}
                | {"original": original, "edited": edited}
                | {"cut": "" if row.finished else "cut at the length limit"}
            )
    return examples


def _side(parts: Sequence[tuple[str, str]], other: str) -> list[tuple[str, bool]]:
    """Returns [(text, is changed)] of a difference without the parts of kind ``other``."""
    side = [(text, kind != words.UNCHANGED) for kind, text in parts if kind != other]
    runs = itertools.groupby(side, key=lambda part: part[1])
    texts = [("".join(text for text, _ in run), changed) for changed, run in runs]
    return [(text.translate(html.HARMLESS), changed) for text, changed in texts]


def format_figures(statistics: Mapping) -> str:
    """Returns tables, histograms and the numbers of unusable edits as text."""
    bars = {measure: _bars(bins) for measure, bins in statistics["histograms"].items()}
    return _render("figures.txt", statistics, bars=bars, measures=MEASURES, quantiles=QUANTILES)


def _bars(histogram: Mapping) -> list[str]:
    """Returns a line per bin, from the first to the last filled one; empty neighbours share one."""
    counts, edges = histogram["counts"], histogram["edges"]
    starts = [k for k, n in enumerate(counts) if n or not k or counts[k - 1]]
    counts = [counts[k] for k in starts]
    pairs = [*itertools.pairwise([edges[k] for k in [*starts, -1]])]
    if isinstance(pairs[0][0], int):
        labels = [f"{a}" if b - a == 1 else f"{a} … {b - 1}" for a, b in pairs]
        if len(labels) > 1:
            labels[0], labels[-1] = f"≤ {pairs[0][1] - 1}", f"≥ {pairs[-1][0]}"
    else:
        labels = [f"{a:.2f} – {b:.2f}" for a, b in pairs]
    bars = ["█" * max(round(_BAR_WIDTH * n / max(1, *counts)), bool(n)) for n in counts]
    lines = [f"{a:>16}  {bar} {n}" for a, bar, n in zip(labels, bars, counts, strict=True)]
    filled = np.flatnonzero(counts)
    return lines[filled[0] : filled[-1] + 1] if filled.size else []


def format_examples(statistics: Mapping, *, colour: bool) -> str:
    """Returns an example of each sort; without colours, changes are [-deleted-], {+inserted+}."""
    return _render("examples.txt", statistics, colour=colour)


def _render(name: str, statistics: Mapping, **values) -> str:
    template = html.ENVIRONMENT.get_template(f"feedback/edits/assets/{name}")
    return template.render(statistics=statistics, **values).removesuffix("\n")
