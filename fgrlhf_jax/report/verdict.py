"""Does fine-grained supervision align better, and faster? Answered by rule, a line a comparison.

"Yes" is a win rate only if the two standard-error bars do not overlap and the paired bootstrap's
95 % interval excludes zero; a number of steps only if the bars over seeds do not overlap (one seed
has none, so it shows nothing). "No" is the same with the sign turned; all else is "not shown".
"""

TOKEN, EDITS = "fine_grained_token", "fine_grained"
BASELINE, IMITATION = "ppo_rlhf", "sft_edits"
NONE = "–"
# What the token-level arm is compared with, in words.
RIVALS = {
    BASELINE: "than PPO on preferences",
    EDITS: "than one reward a response, from the same edits",
    IMITATION: "than SFT on the same edits",
}
CRITERIA = {
    "steps_80": "to 80 % of its own gain",
    "steps_95": "to 95 %",
    "steps_to_gold": "to the fixed {judge} score {target}",
}
WORDS = {1: "yes", 0: "not shown", -1: "no"}


def answer_questions(report: dict) -> dict:
    """``better`` and ``faster``: each its question, a verdict, lines and a text.

    A line is one comparison: what ``than``, its ``verdict`` (yes, no or not shown) and numbers as
    ``text``. The verdict of a question is those of all its lines.

    Args:
      report: the content of a report, without the answer.
    """
    rivals = {arm: words for arm, words in RIVALS.items() if arm in report["table1"]}
    if any(row["win_rate"] is None for row in report["table1"].values()):
        better, remark = [], "This study has no judge."
    elif TOKEN in report["table1"] and rivals:
        better = [_compare_wins(report, arm, words) for arm, words in rivals.items()]
        remark = _sharpening(report)
    else:
        better, remark = [], f"This study has not {TOKEN} and an arm to compare it with."
    arms = [arm for arm in rivals if {TOKEN, arm} <= set(report["table3"])]
    faster = [_compare_steps(report, arm, rivals[arm]) for arm in arms]
    without_curves = "" if faster else "There are no learning curves of two arms to compare."
    return {
        "better": _answer("Does fine-grained supervision align better?", better, remark),
        "faster": _answer("And faster?", faster, without_curves),
    }


def win_verdict(report: dict, a: str, b: str, decoding: str = "sampled") -> int:
    """1 where a wins more than b, -1 where less, 0 where that is not shown."""
    prefix = "greedy_" if decoding == "greedy" else ""
    table, bootstrap = report["table1"], _bootstrap(report, a, b, decoding)
    certain = bootstrap["low"] > 0 or bootstrap["high"] < 0
    return _sign(table[a], table[b], f"{prefix}win_rate", f"{prefix}se") if certain else 0


def points(difference: float) -> str:
    """A difference of two rates in percentage points, with its sign."""
    return f"{100 * difference:+z.1f}".replace("-", "−")


def _answer(question: str, lines: list[dict], text: str) -> dict:
    verdict = "; ".join(f"{line['than']}: {line['verdict']}" for line in lines) or "not asked"
    return {"question": question, "verdict": verdict, "lines": lines, "text": text}


def _sign(a: dict, b: dict, field: str, error: str) -> int:
    """The sign of a's lead where both have an error and the bars do not overlap, else 0."""
    if None in (a[field], b[field], a[error], b[error]):
        return 0
    lead = a[field] - b[field]
    return (lead > 0) - (lead < 0) if abs(lead) > a[error] + b[error] else 0


def _bootstrap(report: dict, a: str, b: str, decoding: str = "sampled") -> dict:
    return next(c[decoding] for c in report["comparisons"] if (c["a"], c["b"]) == (a, b))


def _compare_wins(report: dict, rival: str, than: str) -> dict:
    """The line of one win-rate comparison of the token-level arm."""
    sampled, greedy = (_bootstrap(report, TOKEN, rival, d) for d in ("sampled", "greedy"))
    interval = " to ".join(points(sampled[end]) for end in ("low", "high"))
    verdicts = [WORDS[win_verdict(report, TOKEN, rival, d)] for d in ("sampled", "greedy")]
    text = (
        f"{points(sampled['difference'])} points of win rate at T = 1 (95 % interval {interval}); "
        f"decoded greedily {points(greedy['difference'])} ({verdicts[1]})"
    )
    return {"than": than, "verdict": verdicts[0], "text": text}


def _sharpening(report: dict) -> str:
    """A remark where decoding the untouched model greedily is a gain of its own."""
    table = report["table1"]
    untouched = table.get("sft_greedy")
    if not untouched or untouched["win_rate"] - (untouched["se"] or 0) <= 0.5:
        return ""
    than = "more" if untouched["win_rate"] > table[TOKEN]["win_rate"] else "less"
    return (
        f"The untouched SFT model decoded greedily wins {100 * untouched['win_rate']:.1f} %, "
        f"{than} than “{report['labels']['arms'][TOKEN]}” at T = 1: part of a gain at T = 1 may be "
        "sharpening."
    )


def _compare_steps(report: dict, rival: str, than: str) -> dict:
    """The line of one comparison of PPO steps, by all criteria."""
    table, target = report["table3"], report["gold_target"]
    arms = [table[TOKEN], table[rival]]
    signs, parts = [], []
    for criterion, words in CRITERIA.items():
        if criterion == "steps_to_gold" and target is None:
            continue
        signs.append(-_sign(*arms, criterion, f"{criterion}_se"))  # fewer steps are better
        if criterion == "steps_to_gold":
            words = words.format(judge=report["judge"], target=f"{target:.3f}")
        steps = " against ".join(_steps(row, criterion) for row in arms)
        parts.append(f"{words}: {steps} ({WORDS[signs[-1]]})")
    text = f"steps {'; '.join(parts)}"
    seconds = [row["seconds_per_step"] for row in arms]
    if None not in seconds:
        text += f"; a step takes {seconds[0]:.3g} s against {seconds[1]:.3g} s"
    if min(row["seeds"] for row in arms) < 2:
        text += "; of one seed, steps have no standard error"
    return {"than": than, "verdict": _combine(signs), "text": text}


def _combine(signs: list[int]) -> str:
    """One verdict of those of all criteria."""
    yes, no = signs.count(1), signs.count(-1)
    if not yes:
        return WORDS[-1 if no else 0]
    if yes == len(signs):
        return WORDS[1]
    parts = [f"{word} by {count}" for word, count in (("yes", yes), ("no", no)) if count]
    return f"{', '.join(parts)} of {len(signs)} criteria"


def _steps(row: dict, criterion: str) -> str:
    mean, error = row[criterion], row[f"{criterion}_se"]
    if mean is None:
        return f"reached by {row[f'{criterion}_reached']} of {row['seeds']} seeds"
    return f"{mean:.0f}" if error is None else f"{mean:.0f} ± {error:.0f}"
