"""Which arm aligns better, which is faster, which to take? Answered by rule.

Of two arms one is better if the 95 % interval of the paired difference of their win rates, over
seeds and prompts, excludes zero; all else is within noise. One seed shows nothing: another one may
turn it, so what is said is said of that seed. Faster is what :mod:`.speed` tests.
"""

import math

from fgrlhf_jax.report.speed import CRITERIA, SIGNIFICANCE

NONE = "–"
DECODINGS = ("sampled", "greedy")
# What the signs of a lead at T = 1 and greedily are called.
_LEADS = {
    (1, 1): "better in both decodings than",
    (1, 0): "better at T = 1 than",
    (0, 1): "better greedily than",
    (1, -1): "better at T = 1 and worse greedily than",
    (-1, 1): "worse at T = 1 and better greedily than",
    (0, -1): "worse greedily than",
    (-1, 0): "worse at T = 1 than",
    (-1, -1): "worse in both decodings than",
    (0, 0): "within noise of",
}
_CRITERIA = dict(
    zip(
        CRITERIA,
        ("to 80 % of its own gain", "to 95 %", "to the fixed {judge} score {target}"),
        strict=True,
    )
)


def answer_questions(report: dict) -> dict:
    """``better`` and ``faster``: each its question, a text, and lines of ``arm`` and ``text``.

    Args:
      report: the content of a report, without the answer.
    """
    one_seed = report["seeds"] < 2
    where = " in this one seed" if one_seed else ""
    remarks = ["This study has no judge."] if not report["judge"] else []
    if one_seed and not remarks:
        remarks.append("One seed shows nothing: another one may turn it.")
    faster = [_faster_line(report, test) for test in report["speed"]]
    missing = "" if faster else "There are no learning curves of two arms to compare."
    return {
        "better": {
            "question": f"Which arm aligns better{where}?",
            "lines": _better_lines(report),
            "text": " ".join([*remarks, *_sharpening(report)]),
        },
        "faster": {"question": f"And faster{where}?", "lines": faster, "text": missing},
    }


def recommend(
    differences: list[dict], table: dict[str, dict], labels: dict[str, str] | None = None
) -> dict[str, str | None]:
    """The arm to take, and why.

    It is one that no other arm beats, sampled or greedy; of several the cheapest in seconds. Where
    every arm is beaten by another in some decoding, it is the one that is beaten least often, then
    the one with the highest mean of both win rates. Without a judge, and so without differences,
    the highest correction accuracy decides.

    Args:
      differences: those of a report, of every pair of arms.
      table: its ``table1``, without arms that nobody can train (the oracle). Without a judge
        ``correction_accuracy`` and ``correction_se`` are read.
      labels: how "why" calls the arms; by default by their names.

    Returns:
      ``arm`` (None where nothing can be compared) and ``why``.
    """
    leads = {}
    for pair in differences:
        if {pair["arm"], pair["against"]} <= table.keys():
            leads[pair["arm"], pair["against"]] = signs = lead_signs(pair)
            leads[pair["against"], pair["arm"]] = tuple(-sign for sign in signs)
    name = (labels or {}).get
    if not leads:
        return _by_correction(table, name)

    def losses(arm: str) -> int:
        return sum(signs.count(-1) for (a, _), signs in leads.items() if a == arm)

    def rates(arm: str) -> float:
        return table[arm]["win_rate"] + table[arm]["greedy_win_rate"]

    def cost(arm: str) -> float:
        seconds = table[arm].get("seconds")
        return float("inf") if seconds is None else seconds

    least = min(map(losses, table))
    rivals = [arm for arm in table if losses(arm) == least]
    if least:
        arm = max(rivals, key=rates)
        why = "every arm is beaten by another at T = 1 or greedily; this one the least often"
    else:
        arm = min(rivals, key=lambda arm: (cost(arm), -rates(arm)))
        why = "no arm is better at T = 1 or greedily"
        if len(rivals) > 1 and cost(arm) < float("inf"):
            why += f", and of the {len(rivals)} arms of which that is so it costs least"
    why += "; it is " + _grouped({b: s for (a, b), s in leads.items() if a == arm}, name)
    return {"arm": arm, "why": why + _one_seed(table[arm])}


def lead_signs(pair: dict) -> tuple[int, int]:
    """Of an entry of ``differences``: 1 where its arm is better sampled, greedy; −1 worse; 0."""
    return tuple((pair[d]["low"] > 0) - (pair[d]["high"] < 0) for d in DECODINGS)


def lead_words(pair: dict) -> str:
    """:func:`lead_signs` in words, to be followed by the other arm."""
    return _LEADS[lead_signs(pair)]


def _by_correction(table: dict, name) -> dict:
    known = {arm: row for arm, row in table.items() if row.get("correction_accuracy") is not None}
    if not known:
        return {"arm": None, "why": "there is no judge and no correction accuracy to compare by"}
    values = {arm: row["correction_accuracy"] for arm, row in known.items()}
    arm = max(values, key=values.get)
    # Two errors of a difference as if unpaired, so on the safe side.
    errors = {a: row.get("correction_se") for a, row in known.items()}
    close = [
        name(a, a)
        for a in known
        if a != arm
        and None not in (errors[a], errors[arm])
        and values[arm] - values[a] <= 2 * math.hypot(errors[arm], errors[a])
    ]
    why = (
        f"there is no judge, and it has the highest correction accuracy, {100 * values[arm]:.1f} %"
    )
    why += f"; within noise of {', '.join(close)}" if close else ""
    return {"arm": arm, "why": why + _one_seed(known[arm])}


def _one_seed(row: dict) -> str:
    return ". One seed: another one may turn it" if row.get("seeds", 1) < 2 else ""


def _grouped(signs: dict[str, tuple], name) -> str:
    """ "better in both decodings than A, B; within noise of C"."""
    groups: dict[str, list[str]] = {}
    for lead, words in _LEADS.items():
        for arm, of_arm in signs.items():
            if of_arm == lead:
                groups.setdefault(words, []).append(name(arm, arm))
    return "; ".join(f"{words} {', '.join(arms)}" for words, arms in groups.items())


def _better_lines(report: dict) -> list[dict]:
    """A line an arm, the best at T = 1 first, on all arms below it: so every pair is on a line."""
    leads, table, name = {}, report["table1"], report["labels"]["arms"].get
    for pair in report["differences"]:
        leads[pair["arm"], pair["against"]] = signs = lead_signs(pair)
        leads[pair["against"], pair["arm"]] = tuple(-sign for sign in signs)
    names = list(table) if leads else []
    order = sorted(names, key=lambda arm: -table[arm]["win_rate"])
    return [
        {"arm": name(arm, arm), "text": _grouped({b: leads[arm, b] for b in order[k:]}, name)}
        for k, arm in enumerate(order[:-1], 1)
    ]


def _sharpening(report: dict) -> list[str]:
    """A remark where decoding the untouched model greedily is a gain of its own."""
    rate = report["table1"].get("sft", {}).get("greedy_win_rate")
    if rate is None or rate <= 0.55:
        return []
    return [
        f"The untouched SFT model decoded greedily wins {100 * rate:.1f} % against its own samples:"
        " part of a gain at T = 1 may be sharpening."
    ]


def _faster_line(report: dict, test: dict) -> dict:
    """A line of one entry of ``speed``: by which criteria an arm needs fewer steps."""
    name, table, parts = report["labels"]["arms"].get, report["table3"], []
    for criterion, words in _CRITERIA.items():
        if criterion in test:
            target = f"{report['gold_target'] or 0:.3f}"
            words = words.format(judge=report["judge"], target=target)
            rows = (table[test[side]] for side in ("arm", "against"))
            steps = " against ".join(_steps(row, criterion) for row in rows)
            parts.append(f"{words} {steps} ({_speed_words(test[criterion])})")
    text = f"steps {'; '.join(parts)}"
    if test["least_p"] > SIGNIFICANCE:
        text += f"; no p can be below {test['least_p']:.2g} with {test['seeds']} of each"
    return {"arm": f"{name(test['arm'])} against {name(test['against'])}", "text": text}


def _speed_words(tested: dict) -> str:
    if tested["p"] > SIGNIFICANCE:
        return f"not shown, p = {tested['p']:.2g}"
    return f"{'faster' if tested['difference'] < 0 else 'slower'}, p = {tested['p']:.2g}"


def _steps(row: dict, criterion: str) -> str:
    mean, error = row[criterion], row[f"{criterion}_se"]
    if mean is None:
        return f"reached by {row[f'{criterion}_reached']} of {row['seeds']} seeds"
    return f"{mean:.0f}" if error is None else f"{mean:.0f} ± {error:.0f}"
