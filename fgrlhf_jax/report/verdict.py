"""Which arm aligns better, which is faster, which to take? Answered by rule.

Of two arms one is better if the 95 % interval of the paired difference of their win rates, over
seeds and prompts, excludes zero; all else is within noise. Without a judge it is their correction
accuracies, over seeds and edits. One seed shows nothing: another one may turn it, so what is said
is said of that seed. Faster is what :mod:`.speed` tests.
"""

from collections.abc import Mapping

from fgrlhf_jax.report.speed import CRITERIA, SIGNIFICANCE

NONE = "–"
DECODINGS = ("sampled", "greedy")
BASELINE, TOKEN = "ppo_rlhf", "fine_grained_token"
RIVALS = (BASELINE, "fine_grained", "sft_edits")  # that the token arm is compared with
_WORDS = {1: "better", 0: "within noise", -1: "worse"}
_CRITERIA = ("to 80 % of its own gain", "to 95 % of it", "to the fixed {judge} score {target}")


def answer_questions(report: dict) -> dict:
    """``better`` and ``faster``: each its question, a text, and lines of ``arm`` and ``text``."""
    one_seed = report["seeds"] < 2
    where = " in this one seed" if one_seed else ""
    remarks = []
    if not report["judge"]:
        points = "; points are of correction accuracy" if report["differences"] else ""
        remarks.append(f"This study has no judge{points}.")
    if one_seed and (report["judge"] or report["differences"]):
        remarks.append("One seed shows nothing: another one may turn it.")
    # Decoding the untouched model greedily may be a gain of its own.
    rate = report["table1"].get("sft", {}).get("greedy_win_rate")
    if rate is not None and rate > 0.55:
        remarks.append(
            f"The untouched SFT model decoded greedily wins {100 * rate:.1f} % against its own "
            "samples: part of a gain at T = 1 may be sharpening."
        )
    faster = [_faster_line(report, test) for test in report["speed"]]
    missing = "" if faster else "There are no learning curves of two arms to compare."
    return {
        "better": {
            "question": f"Which arm aligns better{where}?",
            "lines": _better_lines(report),
            "text": " ".join(remarks),
        },
        "faster": {"question": f"And faster{where}?", "lines": faster, "text": missing},
    }


def recommend(differences: list[dict], table: dict[str, dict]) -> dict[str, str | None]:
    """The arm to take, and why.

    It is one that no other arm beats, sampled or greedy; of several the cheapest in seconds. Where
    every arm is beaten by another in some decoding, it is the one that is beaten least often, then
    the one with the highest mean of both win rates, or without a judge correction accuracy.

    Args:
      differences: those of a report, of every pair of arms.
      table: its ``table1``, without arms that nobody can train (the oracle).

    Returns:
      ``arm`` (None where nothing can be compared) and ``why``.
    """
    pairs = [pair for pair in differences if {pair["arm"], pair["against"]} <= table.keys()]
    if not pairs:
        why = "there is neither a judge nor correction accuracy by edit to compare by"
        return {"arm": None, "why": f"{why}; answers of an earlier version lack it: delete them"}
    judged = None not in (row.get("win_rate") for row in table.values())
    won, lost = ({arm: dict.fromkeys(DECODINGS, 0) for arm in table} for _ in range(2))
    for pair in pairs:
        for decoding in DECODINGS:
            sides = (pair["arm"], pair["against"])[:: lead(pair[decoding]) or 1]
            won[sides[0]][decoding] += abs(lead(pair[decoding]))
            lost[sides[1]][decoding] += abs(lead(pair[decoding]))

    def rates(arm: str) -> float:
        row = table[arm]
        return row["win_rate"] + row["greedy_win_rate"] if judged else row["correction_accuracy"]

    def cost(arm: str) -> float:
        seconds = table[arm].get("seconds")
        return float("inf") if seconds is None else seconds

    losses = {arm: sum(lost[arm].values()) for arm in table}
    rivals = [arm for arm in table if losses[arm] == min(losses.values())]
    why = "" if judged else "there is no judge; by correction accuracy "
    if min(losses.values()):
        arm = max(rivals, key=rates)
        why += "every arm is beaten by another at T = 1 or greedily; this one the least often"
    else:
        arm = min(rivals, key=lambda arm: (cost(arm), -rates(arm)))
        why += "no arm is better at T = 1 or greedily"
        if len(rivals) > 1 and cost(arm) < float("inf"):
            why += f", and of the {len(rivals)} arms of which that is so it costs least"
    sampled, greedy = (won[arm][decoding] for decoding in DECODINGS)
    why += f"; of the {len(table) - 1} others it beats {sampled} at T = 1 and {greedy} greedily"
    if table[arm].get("seeds", 1) < 2:
        why += ". One seed: another one may turn it"
    return {"arm": arm, "why": why}


def lead(interval: Mapping[str, float]) -> int:
    """1 where an interval of ``differences`` is above zero, -1 where it is below, else 0."""
    return (interval["low"] > 0) - (interval["high"] < 0)


def describe(interval: Mapping[str, float]) -> str:
    """ "+7.1 [+6.1, +8.1], better": points of win rate, their interval, and what it means."""
    values = (f"{interval[key]:+z.1f}".replace("-", "−") for key in ("points", "low", "high"))
    return "{} [{}, {}], ".format(*values) + _WORDS[lead(interval)]


def _better_lines(report: dict) -> list[dict]:
    """By how much the recommended arm leads the next best and its baselines, the token arm its."""
    table, labels = report["table1"], report["labels"]["arms"]
    best = report["recommendation"]["arm"]
    known = {}
    for pair in report["differences"]:
        known[pair["arm"], pair["against"]] = [pair[decoding] for decoding in DECODINGS]
        known[pair["against"], pair["arm"]] = [_turned(pair[decoding]) for decoding in DECODINGS]
    by = "win_rate" if report["judge"] else "correction_accuracy"
    others = sorted((arm for arm in table if arm != best), key=lambda arm: -(table[arm][by] or 0))
    chosen = [*((best, rival) for rival in (*others[:2], "sft_edits", BASELINE, "sft"))]
    chosen += [(TOKEN, rival) for rival in RIVALS]
    lines = []
    for pair in dict.fromkeys(chosen):
        if pair in known and pair[::-1] not in chosen[: chosen.index(pair)]:
            sampled, greedy = map(describe, known[pair])
            names = (labels[arm] for arm in pair)
            text = f"at T = 1 {sampled}; greedily {greedy}"
            lines.append({"arm": " against ".join(names), "text": text})
    return lines


def _turned(interval: Mapping[str, float]) -> dict[str, float]:
    return {"points": -interval["points"], "low": -interval["high"], "high": -interval["low"]}


def _faster_line(report: dict, test: dict) -> dict:
    """A line of one entry of ``speed``: by which criteria an arm needs fewer steps."""
    labels, parts = report["labels"]["arms"], {"faster": [], "slower": [], "not shown": []}
    target = f"{report['gold_target'] or 0:.3f}"
    for criterion, words in zip(CRITERIA, _CRITERIA, strict=True):
        if tested := test.get(criterion):
            verdict = "faster" if tested["difference"] < 0 else "slower"
            if tested["p"] > SIGNIFICANCE:
                verdict = "not shown"
            words = words.format(judge=report["judge"], target=target)
            parts[verdict].append(f"{words} (p = {tested['p']:.2g})")
    text = "; ".join(f"{verdict} {', '.join(each)}" for verdict, each in parts.items() if each)
    if test["least_p"] > SIGNIFICANCE:
        text += f"; no p can be below {test['least_p']:.2g} with {test['seeds']} of each"
    return {"arm": f"{labels[test['arm']]} against {labels[test['against']]}", "text": text}
