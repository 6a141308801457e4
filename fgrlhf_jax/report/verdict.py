"""Does fine-grained supervision align better, and faster? Answered by rule from a report's numbers.

"Shown" is a win rate only if the two standard-error bars do not overlap and the paired bootstrap's
95 % interval excludes zero; a number of steps only if the bars over seeds do not overlap (one seed
has none, so it shows nothing). Everything else is "not shown"; "the opposite is shown" is possible.
"""

TOKEN, EDITS, BASELINE, IMITATION = (
    "fine_grained_token",
    "fine_grained",
    "ppo_rlhf",
    "sft_edits",
)
CRITERIA = {
    "steps_80": "to 80 % of its own gain",
    "steps_95": "to 95 %",
    "steps_to_gold": "to the fixed {judge} score {target}",
}
WORDS = {1: "shown", 0: "not shown", -1: "the opposite is shown"}


def answer(found: dict) -> dict:
    """``better`` and ``faster``: each its question, a verdict and sentences.

    Args:
      found: the content of a report, without the answer.
    """
    if not {TOKEN, BASELINE} <= set(found["table1"]):
        verdict = {
            "verdict": "not asked",
            "text": f"This study has not both arms, {TOKEN} and {BASELINE}.",
        }
        better = faster = verdict
    else:
        better, faster = _better(found), _faster(found)
    return {
        "better": {"question": "Does fine-grained supervision align better?", **better},
        "faster": {"question": "And faster?", **faster},
    }


def win_verdict(found: dict, a: str, b: str, decoding: str = "sampled") -> int:
    """1 where a wins more than b, -1 where less, 0 where that is not shown."""
    prefix = "greedy_" if decoding == "greedy" else ""
    apart = _apart(found["table1"][a], found["table1"][b], f"{prefix}win_rate", f"{prefix}se")
    bootstrap = _bootstrap(found, a, b, decoding)
    certain = bootstrap["low"] > 0 or bootstrap["high"] < 0
    return apart if certain else 0


def step_verdict(found: dict, a: str, b: str, criterion: str) -> int:
    """1 where a needs fewer steps than b, -1 where more, 0 where that is not shown."""
    table = found["table3"]
    if a not in table or b not in table:
        return 0
    return -_apart(table[a], table[b], criterion, f"{criterion}_se")


def percent(mean: float, error: float | None) -> str:
    return f"{100 * mean:.1f} %" if error is None else f"{100 * mean:.1f} ± {100 * error:.1f} %"


def points(difference: float) -> str:
    return f"{100 * difference:+z.1f}".replace("-", "−")


def _apart(a: dict, b: dict, field: str, error: str) -> int:
    """The sign of a's lead where both have an error and the bars do not overlap."""
    if None in (a[field], b[field], a[error], b[error]):
        return 0
    lead = a[field] - b[field]
    return (lead > 0) - (lead < 0) if abs(lead) > a[error] + b[error] else 0


def _bootstrap(found: dict, a: str, b: str, decoding: str) -> dict:
    return next(c[decoding] for c in found["comparisons"] if (c["a"], c["b"]) == (a, b))


def _lead(found: dict, a: str, b: str, decoding: str = "sampled") -> str:
    difference = _bootstrap(found, a, b, decoding)["difference"]
    return f"{points(difference)} points ({WORDS[win_verdict(found, a, b, decoding)]})"


def _won(found: dict, arm: str, prefix: str = "") -> str:
    row = found["table1"][arm]
    return percent(row[f"{prefix}win_rate"], row[f"{prefix}se"])


def _better(found: dict) -> dict:
    table, label = found["table1"], found["labels"]["arms"]
    overall, bootstrap = (
        win_verdict(found, TOKEN, BASELINE),
        _bootstrap(found, TOKEN, BASELINE, "sampled"),
    )
    text = [
        f"At T = 1, “{label[TOKEN]}” wins {_won(found, TOKEN)} against the reference and "
        f"“{label[BASELINE]}” {_won(found, BASELINE)}: {points(bootstrap['difference'])} "
        f"points, 95 % interval {points(bootstrap['low'])} to {points(bootstrap['high'])}."
    ]
    if EDITS in table:
        text.append(
            f"Edits instead of preferences, still one reward a response, make "
            f"{_lead(found, EDITS, BASELINE)} of it; a reward a token instead of one a response "
            f"makes {_lead(found, TOKEN, EDITS)}."
        )
    text.append(
        f"Decoded greedily, the two arms differ by {_lead(found, TOKEN, BASELINE, 'greedy')}."
    )
    untouched = table.get("sft_greedy")
    if untouched and untouched["win_rate"] - (untouched["se"] or 0) > 0.5:
        than = "more" if untouched["win_rate"] > table[TOKEN]["win_rate"] else "less"
        text.append(
            f"The untouched SFT model decoded greedily wins {_won(found, 'sft_greedy')}, {than} "
            f"than “{label[TOKEN]}” does at T = 1; so part of a gain at T = 1 may be sharpening."
        )
    if IMITATION in table:
        text.append(
            f"Imitating the edits by SFT alone wins {_won(found, IMITATION)} at T = 1; the lead of "
            f"“{label[TOKEN]}” over it is {_lead(found, TOKEN, IMITATION)}."
        )
    return {"verdict": WORDS[overall], "text": " ".join(text)}


def _faster(found: dict) -> dict:
    label, table, target = found["labels"]["arms"], found["table3"], found["gold_target"]
    if not {TOKEN, BASELINE} <= set(table):
        return {"verdict": "not asked", "text": "There is no learning curve of both arms."}
    verdicts, parts = [], []
    for criterion, words in CRITERIA.items():
        if criterion == "steps_to_gold" and target is None:
            continue
        verdict = step_verdict(found, TOKEN, BASELINE, criterion)
        verdicts.append(verdict)
        words = words.format(
            judge=found["judge"], target=f"{target:.3f}" if target is not None else ""
        )
        steps = " against ".join(_steps(table[arm], criterion) for arm in (TOKEN, BASELINE))
        parts.append(f"{words}, {steps} ({WORDS[verdict]})")
    text = (
        f"Steps of PPO that “{label[TOKEN]}” needs against “{label[BASELINE]}”: "
        f"{'; '.join(parts)}."
    )
    seconds = [table[arm]["seconds_per_step"] for arm in (TOKEN, BASELINE)]
    if None not in seconds:
        text += f" A step takes {seconds[0]:.3g} s against {seconds[1]:.3g} s"
        whole = [table[arm]["seconds_80"] for arm in (TOKEN, BASELINE)]
        if None not in whole:
            text += f", the way to 80 % takes {whole[0]:.3g} s against {whole[1]:.3g} s"
        text += "."
    if min(table[arm]["seeds"] for arm in (TOKEN, BASELINE)) < 2:
        text += " Of one seed, steps have no standard error, so nothing about speed is shown."
    count = verdicts.count(1)
    if count == len(verdicts):
        verdict = "shown"
    elif count:
        verdict = f"shown by {count} of {len(verdicts)} criteria"
    else:
        verdict = WORDS[-1] if -1 in verdicts else WORDS[0]
    if count and -1 in verdicts:
        verdict += f", the opposite by {verdicts.count(-1)}"
    return {"verdict": verdict, "text": text}


def _steps(row: dict, criterion: str) -> str:
    mean, error = row[criterion], row[f"{criterion}_se"]
    if mean is None:
        return f"reached by {row[f'{criterion}_reached']} of {row['seeds']} seeds"
    return f"{mean:.0f}" if error is None else f"{mean:.0f} ± {error:.0f}"
