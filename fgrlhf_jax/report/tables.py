"""The tables of a report as plain text, which report.html and report.md both show.

A section has a title, a text that says how to read the table, and the table.
"""

import functools
from typing import NamedTuple

import numpy as np

from fgrlhf_jax.functional.win_rate import wilson_interval
from fgrlhf_jax.report.speed import CRITERIA, SIGNIFICANCE
from fgrlhf_jax.report.verdict import DECODINGS, NONE, SIGNS, describe

_CURVE_COLUMNS = 8


class Section(NamedTuple):
    """A titled table of plain text; the first cell of a row is its label."""

    key: str
    title: str
    text: str
    head: list[str]
    rows: list[list[str]]


def sections(report: dict) -> list[Section]:
    """All sections that have rows, in display order."""
    tables = (_table1, _differences, _responses, _corrections, _table2)
    tables += (_curves, _table3, _final, _stages)
    return [section for section in (table(report) for table in tables) if section.rows]


def subtitle(report: dict) -> str:
    """One line: number of prompts and seeds, judge, and over what standard errors are computed."""
    seeds = report["seeds"]
    over = "seeds" if seeds > 1 else "prompts"
    judge = f"{report['judge']} as the judge" if report["judge"] else "no judge"
    measure = "win rate" if report["judge"] else "correction accuracy"
    pairs = f" “A against B” is the {measure} of A minus that of B, in points [95 % interval]."
    return (
        f"{report['test_prompts']} test prompts, {seeds} seed{'s' if seeds > 1 else ''}, {judge}. "
        f"± is one standard error over {over}.{pairs if report['differences'] else ''}"
    )


def number(value: float | None, error: float | None = None, digits: int = 3) -> str:
    """``value ± error`` with a true minus sign; a dash for None."""
    if value is None:
        return NONE
    text = f"{value:z.{digits}f}".replace("-", "−")
    return text if error is None else f"{text} ± {error:.{digits}f}"


def percent(mean: float | None, error: float | None = None, n: int = 0) -> str:
    """``mean ± error`` in per cent; a dash for None.

    A mean of 0 or 1 over ``n`` comparisons has error 0, so Wilson's interval is shown instead.
    """
    if mean is None:
        return NONE
    if n and mean in (0, 1):
        low, high = wilson_interval(mean, n)
        return f"{100 * mean:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * mean:.1f} %" if error is None else f"{100 * mean:.1f} ± {100 * error:.1f} %"


_OPTIONAL_COLUMNS = {  # optional columns of Table 1: head, function that formats a cell, note
    "win_rate_greedy_start": (
        "Against greedy, T = 1",
        percent,
        "Against greedy: the win rate against greedy responses of the common start, a harder "
        "reference.",
    ),
    "greedy_win_rate_greedy_start": ("Against greedy, greedy", percent, ""),
    "correction_accuracy": (
        "Correction",
        percent,
        "Correction: probability of the inserted text, relative to that of the removed text, on "
        "held-out edits; higher is better.",
    ),
    "kl": (
        "KL",
        functools.partial(number, digits=2),
        "KL from the policy that all arms start from, on the arm's own samples, in nats per "
        "response.",
    ),
    "seconds": (
        "Seconds",
        functools.partial(number, digits=0),
        "Seconds of training: the arm with its reward model and the arms that it starts from, "
        "with start-up and compilation but without the common start{at_once}.",
    ),
}


def _table1(report: dict) -> Section:
    judge, table, count = report["judge"] or "judge", report["table1"], report["at_once"]
    optional = {
        key: column
        for key, column in _OPTIONAL_COLUMNS.items()
        if any(row[key] is not None for row in table.values())
        and ("greedy_start" not in key or report["config"].get("world.kind") == "fair")
    }
    rows = [
        [
            report["labels"]["arms"][name],
            percent(row["win_rate"], row["se"], row["n"]),
            percent(row["greedy_win_rate"], row["greedy_se"], row["n"]),
            number(row["gold"], row["gold_se"]),
            number(row["greedy_gold"], row["greedy_gold_se"]),
            number(row["length"], digits=1),
            percent(row["unfinished"]),
            *(format_cell(row[key]) for key, (_, format_cell, _) in optional.items()),
        ]
        for name, row in table.items()
    ]
    at_once = f"; up to {count} stages ran at once, so they are inexact" if count > 1 else ""
    notes = [note.format(at_once=at_once) for _, _, note in optional.values() if note]
    if {row["se_over"] for row in table.values()} == {"seeds", "prompts"}:
        notes.append("The ± of an arm with a single run is over prompts.")
    text = (
        "Win rate: share of test prompts on which the arm's response beats the reference, a "
        "sampled (T = 1) response of the model that all arms start from; a draw counts one half. "
        f"{_capitalise(judge)}: mean score. Higher is better. PPO trains the policy at T = 1; a "
        "gain at T = 1 but not with greedy decoding is only sharpening. Length: tokens per "
        "response; Unfinished: share of responses without an end; both at T = 1."
    )
    head = ["Arm", "Win rate, T = 1", "Win rate, greedy", f"{_capitalise(judge)}, T = 1"]
    head += [f"{_capitalise(judge)}, greedy", "Length", "Unfinished"]
    head += [title for title, _, _ in optional.values()]
    title = "Table 1. Which arm aligns better?"
    return Section("table1", title, " ".join([text, *notes]), head, rows)


def _differences(report: dict) -> Section:
    labels = report["labels"]["arms"]
    rows = [
        [labels[pair["arm"]], labels[pair["against"]], *(describe(pair[d]) for d in DECODINGS)]
        for pair in report["differences"]
    ]
    metric, units = ("Win rate", "prompts") if report["judge"] else ("Correction accuracy", "edits")
    over = f"seeds, which all start from the same model, and {units}"
    if report["seeds"] == 1:
        over = f"the {units} of this one seed, so another seed may reverse it"
    text = (
        f"{metric} of “Arm” minus that of “Against”, in percentage points, paired by seed and "
        f"{units[:-1]}, with its 95 % interval over {over}. “Arm” is better if the interval is "
        "above zero and worse if it is below. There is no correction for multiple comparisons."
    )
    head = ["Arm", "Against", "Points, T = 1", "Points, greedy"]
    return Section("differences", "Arm against arm", text, head, rows)


def _responses(report: dict) -> Section:
    decodings = {"": "T = 1", "greedy_": "greedy"}
    columns = [(sign, prefix) for sign in SIGNS for prefix in decodings]
    rows = [
        [report["labels"]["arms"][name], *(percent(row[f"{p}{s}"]) for s, p in columns)]
        for name, row in report["table1"].items()
    ]
    text = (
        "Signs that responses are no answers, which a judge may like all the same. Unfinished: "
        "share of responses without an end. Repeated: share of their sequences of four words that "
        "stood in the same response before. Copied: share of them that stand in the prompt, which "
        "is no fault where the prompt asks for it. Same phrase: share of responses that contain "
        "the same four words, which are not in the prompt. Compare with the model that all arms "
        "start from, and read the responses (seed_0/answers)."
    )
    heads = (f"{s.replace('_', ' ').capitalize()}, {decodings[p]}" for s, p in columns)
    is_known = any(row["repeated"] is not None for row in report["table1"].values())
    title = "Do the responses end, and are they more than repetition?"
    return Section("responses", title, text, ["Arm", *heads], rows if is_known else [])


_CORRECTIONS = {  # column: its head and the function that formats a cell
    "sampled": ("Sampled", percent),
    "greedy": ("Greedy", percent),
    "written": ("Written", percent),
    "moved": ("Moved", number),
    "words_sampled": ("Words left, T = 1", functools.partial(number, digits=2)),
    "words_greedy": ("Words left, greedy", functools.partial(number, digits=2)),
    "fluency_sampled": ("Fluency, T = 1", number),
    "fluency_greedy": ("Fluency, greedy", number),
}


def _corrections(report: dict) -> Section:
    arms, ranks = (report["corrections"][key] for key in ("arms", "rank_correlation"))
    shown = [n for n in _CORRECTIONS if any(row[n]["mean"] is not None for row in arms.values())]
    rows = [
        [report["labels"]["arms"][name]]
        + [_CORRECTIONS[n][1](row[n]["mean"], row[n]["se"]) for n in shown]
        for name, row in arms.items()
    ]
    text = (
        "Measures on held-out edits, without a judge. Sampled: probability of the correction, "
        "relative to correction plus original. Greedy: how often the correction's first token is "
        "likelier than the original's. Written: how often it is the likeliest of all tokens. "
        "Higher is better for these three. Moved: mean absolute change of unchanged "
        "tokens' log-probabilities since the start of all arms, in nats."
    )
    if "words_sampled" in shown:
        text += " Words left: words per response that an editor would still change."
    if "fluency_sampled" in shown:
        text += (
            " Fluency: log-probability per token of responses under a model not trained here; "
            "compare with the start. Higher is not better: repeated and stock phrases are likely."
        )
    known = [f"{number(ranks[d], digits=2)} {d}" for d in DECODINGS if ranks[d] is not None]
    if known:
        text += (
            f" Over the {len(arms)} arms, the rank correlation (Spearman) of correction accuracy "
            f"with the {report['judge']} score is {' and '.join(known)}."
        )
    head = ["Arm", *(_CORRECTIONS[name][0] for name in shown)]
    title = "What the policies do at the places of held-out edits"
    return Section("corrections", title, text, head, rows if shown else [])


def _table2(report: dict) -> Section:
    table = report["table2"]
    sizes: dict[str, int] = {}  # of the test sets
    for row in table.values():
        sizes |= {name: cell["n"] for name, cell in row.items() if name not in (*sizes, "auroc")}
    rows = []
    for name, row in table.items():
        cells = [row.get(test_set, {"accuracy": None, "se": None}) for test_set in sizes]
        accuracies = [percent(c["accuracy"], c["se"], c.get("n", 0)) for c in cells]
        auroc = number(report["auroc"][name]["mean"], report["auroc"][name]["se"])
        rows.append([report["labels"]["reward_models"][name], *accuracies, auroc])
    text = (
        "Accuracy: share of test pairs in which the reward model scores the better response "
        "higher (chance: 50 %), per test set with its number of pairs n. AUROC: how well low token "
        "rewards predict which tokens an edit changed (chance: 0.5), for models that reward "
        "tokens. Higher is better."
    )
    head = ["Reward model", *(f"{_capitalise(s)} (n = {n})" for s, n in sizes.items()), "AUROC"]
    return Section("table2", "Table 2. Which reward model judges better?", text, head, rows)


def _table3(report: dict) -> Section:
    target, arm = report["gold_target"], report["gold_target_arm"]
    goal, is_serial = f"{report['judge']} {number(target)}", report["at_once"] == 1
    head = ["Arm", "Steps to 80 % of own gain", "Steps to 95 %", f"Steps to {goal}"]
    if is_serial:
        head += ["Seconds per step", "Seconds to 80 %", "Seconds to 95 %", f"Seconds to {goal}"]
    rows = []
    for name, row in report["table3"].items():
        cells = []
        for key in CRITERIA:
            reached = row[f"{key}_reached"]
            is_partial = row[key] is None and reached
            cell = number(row[key], row[f"{key}_se"], digits=0)
            cells.append(f"{reached} of {row['seeds']} seeds" if is_partial else cell)
        if is_serial:
            seconds = (row[key.replace("steps", "seconds")] for key in CRITERIA)
            cells += [number(row["seconds_per_step"]), *(number(s, digits=1) for s in seconds)]
        rows.append([report["labels"]["arms"][name], *cells])
    source = (
        f": {number(target)}, 80 % of the way from the start of "
        f"“{report['labels']['arms'][arm]}” to the lowest of its seeds' best scores"
        if target is not None
        else ""
    )
    text = (
        f"PPO steps until the {report['judge']} score on validation prompts first reaches a goal; "
        "fewer is better. Each evaluation is averaged with its two neighbours. The first two goals "
        "are shares of an arm's own gain, so a small gain is reached early; the third is the same "
        f"score for every arm{source}. 0: reached at the start; {NONE}: no seed reaches it. The "
        "statements above come from a permutation test of whole curves, whose false-positive rate "
        f"over all goals is at most {100 * SIGNIFICANCE:.0f} %."
        f"{'' if is_serial else ' Stages ran at once, so their seconds are not compared.'}"
    )
    return Section("table3", "Table 3. Which arm is faster?", text, head, rows)


def _curves(report: dict) -> Section:
    longest = max((curve["step"] for curve in report["curves"].values()), key=len, default=[])
    picked = np.unique(np.linspace(0, len(longest) - 1, _CURVE_COLUMNS).round().astype(int))
    steps = [longest[k] for k in picked] if longest else []
    rows = []
    for name, curve in report["curves"].items():
        scores = map(number, curve["gold"], curve["gold_se"])
        by_step = dict(zip(curve["step"], scores, strict=True))
        cells = [by_step.get(step, NONE) for step in steps]
        rows.append([report["labels"]["arms"][name], *cells])
    text = f"Mean {report['judge']} score (higher is better) on validation prompts, T = 1" + (
        ", ± one standard error over seeds." if report["seeds"] > 1 else "."
    )
    head = ["Arm", *(f"step {step}" for step in steps)]
    return Section("curves", "Learning curves", text, head, rows)


def _final(report: dict) -> Section:
    rows = []
    for name, curve in report["curves"].items():
        if not curve["step"]:
            continue
        last = {key: column[-1] for key, column in curve.items() if isinstance(column, list)}
        digits = {"kl": 2, "gold": 3, "reward": 2, "length": 1}
        cells = [number(last[key], last[f"{key}_se"], d) for key, d in digits.items()]
        correlation = number(curve["reward_length_correlation"], digits=2)
        label, step = report["labels"]["arms"][name], str(last["step"])
        rows.append([label, step, *cells, percent(last["unfinished"]), correlation])
    text = (
        f"The {report['judge']} score against its cost in KL, and whether reward grows with "
        "length, at the last evaluation on validation prompts. KL: nats per response from the "
        "arm's own start. Reward: of the arm's own reward model, so not comparable between arms. "
        "Length: tokens per response. r(reward, length): correlation over the responses of a "
        "rollout, mean of the last steps; a high value suggests reward for length alone."
    )
    head = ["Arm", "Last step", "KL", _capitalise(report["judge"]), "Reward", "Length"]
    head += ["Unfinished", "r(reward, length)"]
    return Section("end", "KL, reward and length", text, head, rows)


def _stages(report: dict) -> Section:
    seconds = report["seconds"] | {"all": sum(report["seconds"].values())}
    rows = [[name, number(value, digits=1)] for name, value in seconds.items()]
    text = "Seconds of each stage, with start-up and compilation; below them the commands."
    return Section("stages", "Stages", text, ["Stage", "Seconds"], rows)


def recommendation(report: dict) -> str:
    """The recommended arm and the reason."""
    arm, why = (report["recommendation"][key] for key in ("arm", "why"))
    return f"Take “{report['labels']['arms'][arm]}”: {why}." if arm else f"{_capitalise(why)}."


def _capitalise(word: str) -> str:
    return word[:1].upper() + word[1:]
