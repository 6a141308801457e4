"""Statistics of the edits in a file: how minimal they are, their kinds and annotators, examples.

Records in, a dict out, which is the report's JSON; page.py renders the same dict as HTML, and
:func:`format_report` as text for a terminal.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fgrlhf_jax.data.records import Edit, shown_prompt
from fgrlhf_jax.feedback.edits import minimality
from fgrlhf_jax.report.html import HARMLESS

# The metrics of an edit and their names for people.
MEASURES = {
    "word_change_ratio": "word change ratio",
    "token_change_ratio": "token change ratio",
    "length_change": "length change, words",
    "words_original": "words of the original",
    "words_edited": "words of the edited",
    "changes": "changes in a response",
}
KINDS = {
    "insert": "only insert",
    "delete": "only delete",
    "replace": "only replace",
    "mixed": "mix these",
    "none": "change no word",
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
    """The statistics of edits, ready for JSON.

    Args:
      annotators: who made each edit, "" where that is unknown.
      encode: text to token ids; without it there are no token change ratios.
      max_change_ratio: as in :func:`minimality.find_fault`; rows beyond it are counted, not left
        out.
      rejected: reason -> rows that were set aside when the edits were collected.
      examples: how many of each sort are included.

    Returns:
      n, kinds {kind: n}, shares {kind: share of n}, each of `MEASURES` as {"mean", "median", …},
      histograms {measure: {"edges", "counts"}} (the first and the last bin include values beyond
      them), faults {fault: n}, aside (the rejected), annotators {name: the same, without
      histograms}, examples, and rows: the metrics of each.
    """
    metrics = [minimality.measure(row.original, row.edited, encode) for row in rows]
    faults = [
        minimality.find_fault(row.original, row.edited, max_change_ratio, edit.word_change_ratio)
        for row, edit in zip(rows, metrics, strict=True)
    ]
    names = [printable(name) for name in annotators] or [""] * len(rows)
    by_name: dict[str, list[minimality.EditMetrics]] = {}
    for name, edit in zip(names, metrics, strict=True):
        by_name.setdefault(name, []).append(edit)
    by_annotator = {name or "unknown": _summary(by_name[name]) for name in sorted(by_name)}
    zipped = enumerate(zip(rows, names, metrics, faults, strict=True), 1)
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
            for n, (row, name, edit, fault) in zipped
        ],
    }


def printable(text: str) -> str:
    """Text that is safe to write to a terminal or a page."""
    return text.translate(HARMLESS)


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
            summary[measure] = {
                "mean": float(np.mean(values)),
                **{name: float(np.quantile(values, q)) for name, q in QUANTILES.items()},
            }
    return summary


def histogram(measure: str, values: Sequence[float]) -> dict[str, list]:
    """Counts between edges: ratios in twentieths, lengths in about thirty round bins."""
    if measure == "length_change":
        low, high = np.quantile(values, [0.01, 0.99]) if values else (0, 0)
        least = max(1, (high - low) / _NUMBER_BINS)
        power = 10 ** math.floor(math.log10(least))
        width = next(m * power for m in (1, 2, 5, 10) if m * power >= least)
        first, last = math.floor(low / width), math.floor(high / width) + 1
        edges = [width * k for k in range(first, last + 1)]
    else:
        edges = [k / _RATIO_BINS for k in range(_RATIO_BINS + 1)]
    inside = np.clip(values, edges[0], np.nextafter(edges[-1], -np.inf))
    counts, _ = np.histogram(inside, edges)
    return {"edges": edges, "counts": counts.tolist()}


def _examples(rows, names, metrics, count: int) -> list[dict]:
    """Rows with the least, median and most changes, none of them twice."""
    order = sorted(range(len(rows)), key=lambda k: (metrics[k].word_change_ratio, k))
    middle = sorted(range(len(order)), key=lambda place: abs(place - (len(order) - 1) / 2))
    sorts = {"least": order, "median": [order[place] for place in middle], "most": order[::-1]}
    examples, taken = [], set()
    for sort, candidates in sorts.items():
        chosen = [k for k in candidates if k not in taken][:count]
        taken |= set(chosen)
        for rank, k in enumerate(chosen, 1):
            row, edit = rows[k], metrics[k]
            texts = zip(("id", "instruction", "input"), (row.id, *shown_prompt(row)), strict=True)
            example = {"sort": sort, "rank": rank, "row": k + 1, "annotator": names[k]}
            example |= {name: printable(text) for name, text in texts}
            example |= {"kind": edit.kind, "word_change_ratio": edit.word_change_ratio}
            sides = minimality.mark_changes(row.original, row.edited)
            for side, spans in zip(("original", "edited"), sides, strict=True):
                example[side] = [(printable(text), changed) for text, changed in spans]
            examples.append(example)
    return examples


def kind_rows(statistics: Mapping) -> list[tuple[str, int, str]]:
    """The kinds of edits in words, with their number and share."""
    return [
        (KINDS[kind], n, f"{100 * statistics['shares'][kind]:.1f} %")
        for kind, n in statistics["kinds"].items()
        if n or kind != "none"
    ]


def measure_rows(statistics: Mapping) -> list[list[str]]:
    """The cells of a table of `MEASURES`: name, mean, and `QUANTILES`."""
    return [
        [name] + [f"{n:.{3 if 'ratio' in name else 1}f}" for n in statistics[measure].values()]
        for measure, name in MEASURES.items()
        if measure in statistics
    ]


def annotator_rows(statistics: Mapping) -> list[list[str]]:
    """The cells of a table of annotators: name, n, median ratio, the share of each kind."""
    return [
        [name, f"{each['n']}", f"{each['word_change_ratio']['median']:.3f}"]
        + [f"{100 * share:.1f} %" for share in each["shares"].values()]
        for name, each in statistics["annotators"].items()
    ]


def bar_rows(histogram: Mapping) -> list[tuple[str, int, float]]:
    """(range, count, share of the highest count) of each bin from the first to the last filled."""
    pairs, counts = list(itertools.pairwise(histogram["edges"])), histogram["counts"]
    if isinstance(pairs[0][0], int):
        labels = [f"{a}" if b - a == 1 else f"{a} … {b - 1}" for a, b in pairs]
        if len(labels) > 1:
            labels[0], labels[-1] = f"≤ {pairs[0][1] - 1}", f"≥ {pairs[-1][0]}"
    else:
        labels = [f"{a:.2f} – {b:.2f}" for a, b in pairs]
    filled = [k for k, count in enumerate(counts) if count] or [0]
    rows = zip(labels, counts, [count / max(1, *counts) for count in counts], strict=True)
    return list(rows)[filled[0] : filled[-1] + 1]


def notes(statistics: Mapping) -> list[str]:
    """Rows that a filter would set aside, and those that were set aside already."""
    limit = statistics["max_change_ratio"]
    counts = [f"{n} {fault}" for fault, n in statistics["faults"].items() if n]
    faults = ", ".join(counts) or "none"
    lines = [f"rows that a filter with max_change_ratio={limit:g} would set aside: {faults}"]
    if statistics["aside"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in statistics["aside"].items())
        lines.append(f"set aside when they were collected: {reasons}")
    return lines


def format_report(statistics: Mapping, *, colour: bool) -> str:
    """The report for a terminal; without colours, changes are [-deleted-] and {+inserted+}."""
    kinds = ", ".join(f"{n} {kind} ({share})" for kind, n, share in kind_rows(statistics))
    lines = [f"{statistics['n']} edits: {kinds}", ""]
    for name, *cells in (["", "mean", *QUANTILES], *measure_rows(statistics)):
        lines.append(f"{name:<24}" + "".join(f"{cell:>9}" for cell in cells))
    for measure, bins in statistics["histograms"].items():
        lines += ["", MEASURES[measure]]
        for label, count, share in bar_rows(bins):
            bar = "█" * max(round(_BAR_WIDTH * share), bool(count))
            lines.append(f"{label:>16}  {bar} {count}")
    if statistics["annotators"]:
        width = max(10, *map(len, statistics["annotators"])) + 2
        heads = ["annotator", "n", "median ratio", *minimality.KINDS]
        lines.append("")
        for name, n, median, *shares in (heads, *annotator_rows(statistics)):
            cells = "".join(f"{share:>10}" for share in shares)
            lines.append(f"{name:<{width}}{n:>7}{median:>14}{cells}")
    lines += ["", *notes(statistics)]
    for example in statistics["examples"]:
        lines += ["", *_example(example, colour)]
    return "\n".join(lines)


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
    prompt = prompt if len(prompt) <= 200 else f"{prompt[:199]}…"
    return [head, f"{'prompt':<9} {prompt}", *sides]
