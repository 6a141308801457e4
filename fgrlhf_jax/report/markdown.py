"""A report as Markdown: the answer, the tables, token rewards and commands."""

import re

from fgrlhf_jax.report.tables import number, recommendation, sections, subtitle

MAX_TOKENS = 40  # rows of a table of token rewards


def to_markdown(report: dict) -> str:
    """The text of ``report.md``."""
    lines = [f"# {_escape(report['title'])}", "", _escape(subtitle(report)), ""]
    if report["recommendation"]["arm"]:
        lines += [f"**{_escape(recommendation(report))}**", ""]
    for part in report["answer"].values():
        lines += [f"**{part['question']}**", ""]
        lines += [f"- {_escape(line['arm'])}: {_escape(line['text'])}" for line in part["lines"]]
        lines += ["", _escape(part["text"]), ""] if part["text"] else [""]
    lines += [f"{_escape(name)}: {_escape(value)}  " for name, value in report["about"].items()]
    lines += [""]
    for section in sections(report):
        if section.key == "stages":
            lines += _heatmaps(report)
        lines += [f"## {_escape(section.title)}", "", _escape(section.text), ""]
        lines += [*_table(section.head, section.rows), ""]
    commands = "\n".join(f"# {stage}\n{c}" for stage, c in report["commands"].items())
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", commands)), default=0))
    return "\n".join([*lines, f"{fence}bash", commands, fence, ""])


def _heatmaps(report: dict) -> list[str]:
    lines = ["## Token rewards", ""] if report["heatmaps"] else []
    for item in report["heatmaps"]:
        gold = item["gold"]  # only in the embedded world
        score = "" if gold is None else f" ({_escape(report['judge'])} {number(gold)})"
        lines += [f"**{_escape(item['prompt'])}** → {_escape(item['response'])}{score}", ""]
        groups = {}  # reward models that read the same tokens share a table
        for name, side in item["by"].items():
            groups.setdefault(tuple(side["tokens"]), []).append(name)
        for tokens, names in groups.items():
            labels = [report["labels"]["reward_models"].get(name, name) for name in names]
            rewards = [item["by"][name]["rewards"] for name in names]
            rows = [
                [token, *(number(reward, digits=2) for reward in values)]
                for token, *values in zip(tokens, *rewards, strict=True)
            ]
            lines += [*_table(["Token", *labels], rows[:MAX_TOKENS]), ""]
            if len(rows) > MAX_TOKENS:
                lines += [f"… and {len(rows) - MAX_TOKENS} more tokens.", ""]
    return lines


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    rule = ["---", *["--:"] * (len(head) - 1)]
    table = [[_escape(cell) for cell in row] for row in (head, *rows)]
    return [f"| {' | '.join(row)} |" for row in (table[0], rule, *table[1:])]


def _escape(text: str) -> str:
    """Escapes a text for Markdown and joins its lines."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
