"""Does fine-grained supervision align better, and faster? Answered by rule from a report's numbers.

"Shown" is a win rate only if the two standard-error bars do not overlap and the paired bootstrap's
95 % interval excludes zero; a number of steps only if the bars over seeds do not overlap (one seed
has none, so it shows nothing). Everything else is "not shown"; "the opposite is shown" is possible.
"""

TOKEN, EDITS = "fine_grained_token", "fine_grained"
BASELINE, IMITATION = "ppo_rlhf", "sft_edits"
NONE = "–"
CRITERIA = {
    "steps_80": "to 80 % of its own gain",
    "steps_95": "to 95 %",
    "steps_to_gold": "to the fixed {judge} score {target}",
}
WORDS = {1: "shown", 0: "not shown", -1: "the opposite is shown"}


def answer_questions(report: dict) -> dict:
    """``better`` and ``faster``: each its question, a verdict and sentences.

    Args:
      report: the content of a report, without the answer.
    """
    if {TOKEN, BASELINE} <= set(report["table1"]):
        better, faster = _answer_better(report), _answer_faster(report)
    else:
        text = f"This study has not both arms, {TOKEN} and {BASELINE}."
        better = faster = {"verdict": "not asked", "text": text}
    return {
        "better": {"question": "Does fine-grained supervision align better?", **better},
        "faster": {"question": "And faster?", **faster},
    }


def win_verdict(report: dict, a: str, b: str, decoding: str = "sampled") -> int:
    """1 where a wins more than b, -1 where less, 0 where that is not shown."""
    prefix = "greedy_" if decoding == "greedy" else ""
    table, bootstrap = report["table1"], _bootstrap(report, a, b, decoding)
    certain = bootstrap["low"] > 0 or bootstrap["high"] < 0
    return _sign(table[a], table[b], f"{prefix}win_rate", f"{prefix}se") if certain else 0


def percent(mean: float | None, error: float | None = None) -> str:
    """``mean ± error`` in per cent, or a dash."""
    if mean is None:
        return NONE
    return f"{100 * mean:.1f} %" if error is None else f"{100 * mean:.1f} ± {100 * error:.1f} %"


def points(difference: float) -> str:
    return f"{100 * difference:+z.1f}".replace("-", "−")


def _sign(a: dict, b: dict, field: str, error: str) -> int:
    """The sign of a's lead where both have an error and the bars do not overlap, else 0."""
    if None in (a[field], b[field], a[error], b[error]):
        return 0
    lead = a[field] - b[field]
    return (lead > 0) - (lead < 0) if abs(lead) > a[error] + b[error] else 0


def _bootstrap(report: dict, a: str, b: str, decoding: str = "sampled") -> dict:
    return next(c[decoding] for c in report["comparisons"] if (c["a"], c["b"]) == (a, b))


def _lead(report: dict, a: str, b: str, decoding: str = "sampled") -> str:
    difference = _bootstrap(report, a, b, decoding)["difference"]
    return f"{points(difference)} points ({WORDS[win_verdict(report, a, b, decoding)]})"


def _answer_better(report: dict) -> dict:
    table, label = report["table1"], report["labels"]["arms"]
    bootstrap = _bootstrap(report, TOKEN, BASELINE)
    won = {name: percent(row["win_rate"], row["se"]) for name, row in table.items()}
    difference, low, high = (points(bootstrap[key]) for key in ("difference", "low", "high"))
    text = [
        f"At T = 1, “{label[TOKEN]}” wins {won[TOKEN]} against the reference and "
        f"“{label[BASELINE]}” {won[BASELINE]}: {difference} points, 95 % interval {low} to {high}."
    ]
    if EDITS in table:
        text.append(
            f"Edits instead of preferences, still one reward a response, make "
            f"{_lead(report, EDITS, BASELINE)} of it; a reward a token instead of one a response "
            f"makes {_lead(report, TOKEN, EDITS)}."
        )
    text.append(
        f"Decoded greedily, the two arms differ by {_lead(report, TOKEN, BASELINE, 'greedy')}."
    )
    untouched = table.get("sft_greedy")
    if untouched and untouched["win_rate"] - (untouched["se"] or 0) > 0.5:
        than = "more" if untouched["win_rate"] > table[TOKEN]["win_rate"] else "less"
        text.append(
            f"The untouched SFT model decoded greedily wins {won['sft_greedy']}, {than} "
            f"than “{label[TOKEN]}” does at T = 1; so part of a gain at T = 1 may be sharpening."
        )
    if IMITATION in table:
        text.append(
            f"Imitating the edits by SFT alone wins {won[IMITATION]} at T = 1; the lead of "
            f"“{label[TOKEN]}” over it is {_lead(report, TOKEN, IMITATION)}."
        )
    return {"verdict": WORDS[win_verdict(report, TOKEN, BASELINE)], "text": " ".join(text)}


def _answer_faster(report: dict) -> dict:
    label, table, target = report["labels"]["arms"], report["table3"], report["gold_target"]
    if not {TOKEN, BASELINE} <= set(table):
        return {"verdict": "not asked", "text": "There is no learning curve of both arms."}
    arms = [table[TOKEN], table[BASELINE]]
    verdicts, parts = [], []
    for criterion, words in CRITERIA.items():
        if criterion == "steps_to_gold" and target is None:
            continue
        verdicts.append(-_sign(*arms, criterion, f"{criterion}_se"))  # fewer steps are better
        if target is not None:
            words = words.format(judge=report["judge"], target=f"{target:.3f}")
        steps = " against ".join(_steps(row, criterion) for row in arms)
        parts.append(f"{words}, {steps} ({WORDS[verdicts[-1]]})")
    text = (
        f"Steps of PPO that “{label[TOKEN]}” needs against “{label[BASELINE]}”: {'; '.join(parts)}."
    )
    seconds = [row["seconds_per_step"] for row in arms]
    if None not in seconds:
        text += f" A step takes {seconds[0]:.3g} s against {seconds[1]:.3g} s"
        seconds = [row["seconds_80"] for row in arms]
        if None not in seconds:
            text += f", the way to 80 % takes {seconds[0]:.3g} s against {seconds[1]:.3g} s"
        text += "."
    if min(row["seeds"] for row in arms) < 2:
        text += " Of one seed, steps have no standard error, so nothing about speed is shown."
    return {"verdict": _combine(verdicts), "text": text}


def _combine(verdicts: list[int]) -> str:
    """One verdict of those of all criteria."""
    shown, opposite = verdicts.count(1), verdicts.count(-1)
    if not shown:
        return WORDS[-1 if opposite else 0]
    if shown == len(verdicts):
        return WORDS[1]
    text = f"shown by {shown} of {len(verdicts)} criteria"
    return f"{text}, the opposite by {opposite}" if opposite else text


def _steps(row: dict, criterion: str) -> str:
    mean, error = row[criterion], row[f"{criterion}_se"]
    if mean is None:
        return f"reached by {row[f'{criterion}_reached']} of {row['seeds']} seeds"
    return f"{mean:.0f}" if error is None else f"{mean:.0f} ± {error:.0f}"
