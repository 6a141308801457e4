"""Rules that decide which arm aligns better, which is faster, and which to recommend.

An arm is better than another if the 95 % interval of their paired difference in win rate, over
seeds and prompts, is above zero; an interval that contains zero is "within noise". Without a judge,
correction accuracy over seeds and edits takes the place of win rate. A result of one seed is
labelled as such, since another seed may reverse it. :mod:`.speed` tests which arm is faster.
"""

from collections.abc import Mapping

from fgrlhf_jax.report.speed import CRITERIA, SIGNIFICANCE

NONE = "–"
DECODINGS = ("sampled", "greedy")
START, BASELINE, TOKEN = "sft", "ppo_rlhf", "fine_grained_token"
RIVALS = (BASELINE, "fine_grained", "sft_edits")  # arms to compare the token arm with
_NONE_SHOWN = "no difference shown"
SIGNS = {  # of responses that are no answers: shares in the report's table1, by name
    "unfinished": "responses without an end",
    "repeated": "repeated four-word sequences",
    "copied": "four-word sequences copied from the prompt",
    "same_phrase": "responses with the same four words",
}
_RISE = 0.1  # of a sign's share over the start's, from which on the recommendation warns
_WORDS = {1: "better", 0: "within noise", -1: "worse"}
_CRITERIA = ("to 80 % of its own gain", "to 95 % of it", "to the fixed {judge} score {target}")


def answer_questions(report: dict) -> dict:
    """Answers ``better``, ``faster`` and ``signs``, the latter if the shares of SIGNS are known.

    An answer has a question, lines of ``arm`` and ``text``, and a text.
    """
    one_seed = report["seeds"] < 2
    where = " in this one seed" if one_seed else ""
    remarks = []
    if not report["judge"]:
        points = "; differences are in correction accuracy" if report["differences"] else ""
        remarks.append(f"This study has no judge{points}.")
    if one_seed and (report["judge"] or report["differences"]):
        remarks.append("One seed is no evidence: another may reverse the result.")
    # Greedy decoding alone may raise the win rate of the untrained start.
    rate = report["table1"].get(START, {}).get("greedy_win_rate")
    if rate is not None and rate > 0.55:
        remarks.append(
            f"Greedy responses of “{report['labels']['arms'][START]}” win {100 * rate:.1f} % "
            "against its own samples: part of a gain at T = 1 may be sharpening."
        )
    faster = [_faster_line(report, test) for test in report["speed"]]
    compared = f"Speed is compared only between {TOKEN} and {BASELINE} or fine_grained."
    answer = {
        "better": {
            "question": f"Which arm aligns better{where}?",
            "lines": _better_lines(report),
            "text": " ".join(remarks),
        },
        "faster": {
            "question": f"Which arm is faster{where}?",
            "lines": faster,
            "text": "" if faster else compared,
        },
    }
    table, labels = report["table1"], report["labels"]["arms"]
    if all(row["repeated"] is None for row in table.values()):
        return answer
    signs_of = {arm: signs for arm in table if (signs := _signs(table, arm))}
    answer["signs"] = {
        "question": "Whose responses should be read before their numbers are trusted?",
        "lines": [{"arm": labels[arm], "text": signs} for arm, signs in signs_of.items()],
        "text": "" if signs_of else "No arm has ten points more of a sign than before training.",
    }
    return answer


def recommend(differences: list[dict], table: dict[str, dict]) -> dict[str, str | None]:
    """The recommended arm, and why.

    Candidates are the arms that no other arm beats, sampled or greedy; the cheapest in seconds is
    recommended. If every arm is beaten in some decoding, candidates are the arms that are beaten
    least often; the one with the highest mean of both win rates (without a judge: correction
    accuracy) is recommended.

    ``table`` is the report's ``table1``, without arms that need the oracle. Returns ``arm`` (None
    if nothing can be compared) and ``why``, which warns of signs that its responses are no answers.
    """
    pairs = [pair for pair in differences if {pair["arm"], pair["against"]} <= table.keys()]
    if not pairs:
        why = "the arms have neither a judge's scores nor correction accuracy per edit"
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
    why = "" if judged else "without a judge, by correction accuracy, "
    if min(losses.values()):
        arm = max(rivals, key=rates)
        why += "every arm is beaten by another at T = 1 or greedily; this arm the least often"
    else:
        arm = min(rivals, key=lambda arm: (cost(arm), -rates(arm)))
        why += "no arm is better at T = 1 or greedily"
        if len(rivals) > 1 and cost(arm) < float("inf"):
            why += f", and it is the cheapest of the {len(rivals)} such arms"
    sampled, greedy = (won[arm][decoding] for decoding in DECODINGS)
    why += f"; of the {len(table) - 1} others it beats {sampled} at T = 1 and {greedy} greedily"
    if table[arm].get("seeds", 1) < 2:
        why += ". One seed: another seed may reverse this"
    if signs := _signs(table, arm):
        why += f". But read its responses first (seed_0/answers/{arm}.json): {signs}"
    return {"arm": arm, "why": why}


def _signs(table: Mapping[str, Mapping], arm: str) -> str:
    """Returns the signs of non-answers that an arm has more often than the start, or ""."""
    row, start, signs = table[arm], table.get(START, {}), []
    for sign, what in SIGNS.items():
        parts = []
        for prefix, decoding in (("", "at T = 1"), ("greedy_", "greedily")):
            share, before = (of.get(f"{prefix}{sign}") for of in (row, start))
            if None not in (share, before) and round(share - before, 9) >= _RISE:
                parts.append(f"{100 * share:.0f} % {decoding} (before: {100 * before:.0f} %)")
        if parts:
            signs.append(f"{what}: {', '.join(parts)}")
    return "; ".join(signs)


def lead(interval: Mapping[str, float]) -> int:
    """1 if an interval of ``differences`` is above zero, -1 if it is below, else 0."""
    return (interval["low"] > 0) - (interval["high"] < 0)


def describe(interval: Mapping[str, float]) -> str:
    """ "+7.1 [+6.1, +8.1], better": difference in points, its interval, and the verdict."""
    values = (f"{interval[key]:+z.1f}".replace("-", "−") for key in ("points", "low", "high"))
    return "{} [{}, {}], ".format(*values) + _WORDS[lead(interval)]


def _better_lines(report: dict) -> list[dict]:
    """Compares the recommended arm with the next best and baselines, the token arm with rivals."""
    table, labels = report["table1"], report["labels"]["arms"]
    best = report["recommendation"]["arm"]
    known = {}
    for pair in report["differences"]:
        known[pair["arm"], pair["against"]] = [pair[decoding] for decoding in DECODINGS]
        known[pair["against"], pair["arm"]] = [_reversed(pair[decoding]) for decoding in DECODINGS]
    key = "win_rate" if report["judge"] else "correction_accuracy"
    others = sorted((arm for arm in table if arm != best), key=lambda arm: -(table[arm][key] or 0))
    pairs = [*((best, rival) for rival in (*others[:2], "sft_edits", BASELINE, START))]
    pairs += [(TOKEN, rival) for rival in RIVALS]
    lines = []
    for pair in dict.fromkeys(pairs):
        if pair in known and pair[::-1] not in pairs[: pairs.index(pair)]:
            sampled, greedy = map(describe, known[pair])
            names = (labels[arm] for arm in pair)
            text = f"at T = 1 {sampled}; greedily {greedy}"
            lines.append({"arm": " against ".join(names), "text": text})
    return lines


def _reversed(interval: Mapping[str, float]) -> dict[str, float]:
    return {"points": -interval["points"], "low": -interval["high"], "high": -interval["low"]}


def _faster_line(report: dict, test: dict) -> dict:
    """The line of one entry of ``speed``: the criteria by which an arm needs fewer steps."""
    labels, parts = report["labels"]["arms"], {"faster": [], "slower": [], _NONE_SHOWN: []}
    target = f"{report['gold_target'] or 0:.3f}"
    for criterion, words in zip(CRITERIA, _CRITERIA, strict=True):
        if tested := test.get(criterion):
            verdict = "faster" if tested["difference"] < 0 else "slower"
            if tested["p"] > SIGNIFICANCE:
                verdict = _NONE_SHOWN
            words = words.format(judge=report["judge"], target=target)
            parts[verdict].append(f"{words} (p = {tested['p']:.2g})")
    text = "; ".join(f"{verdict} {', '.join(each)}" for verdict, each in parts.items() if each)
    if test["least_p"] > SIGNIFICANCE:
        seeds = f"{test['seeds']} seed{'s' if test['seeds'] > 1 else ''} per arm"
        text += f"; no p can be below {test['least_p']:.2g} with {seeds}"
    return {"arm": f"{labels[test['arm']]} against {labels[test['against']]}", "text": text}
