"""A report's content as one page that loads nothing: no script, no font, no network.

Pure rendering of what ``report.json`` holds; text is escaped, colours follow the reader's light or
dark mode.
"""

from fgrlhf_jax.report import heatmap
from fgrlhf_jax.report import tables as report_tables
from fgrlhf_jax.report.charts import Dot, Line, dots, lines
from fgrlhf_jax.report.style import COLOURS, PAGE

_NUMBERED = 40  # a longer response has its rewards under the pointer only


def page(found: dict) -> str:
    """``report.html``, of the content of ``report.json``."""
    labels = found["labels"]["arms"]
    return PAGE.render(
        title=found["title"],
        subtitle=report_tables.subtitle(found),
        answer=found["answer"].values(),
        sections=report_tables.sections(found),
        figures=_figures(found),
        legend=[(k % COLOURS, labels[name]) for k, name in enumerate(found["curves"])],
        heatmaps=_heatmaps(found),
        commands=found["commands"],
        config=found["config"],
        judge=found["judge"],
    )


def _figures(found: dict) -> dict[str, list]:
    """The charts of a section, by its key."""
    judge, labels = found["judge"], found["labels"]["arms"]

    def chart(x, y, x_name, y_name, **options):
        given = [
            Line(labels[name], k % COLOURS, curve[x], curve[y], curve[f"{y}_se"])
            for k, (name, curve) in enumerate(found["curves"].items())
        ]
        return lines(given, x=x_name, y=y_name, **options)

    over_steps = [
        chart("step", field, "PPO step", name, size=(460, 260), cut_y=cut)
        for field, name, cut in (
            ("reward", "reward model's reward", ""),
            ("kl", "KL, nats a response", "high"),
            ("length", "length, tokens", ""),
            ("unfinished", "share unfinished", ""),
        )
    ]
    return {
        "table1": [_win_rates(found)],
        "curves": [
            chart(
                "step",
                "gold",
                "PPO step",
                f"{judge} score",
                size=(940, 400),
                cut_y="low",
                labels=True,
            )
        ],
        "end": [
            chart(
                "kl",
                "gold",
                "KL, nats a response",
                f"{judge} score",
                cut_x="high",
                cut_y="low",
                ends=True,
            ),
            chart("length", "reward", "length, tokens", "reward model's reward", ends=True),
            *over_steps,
        ],
    }


def _win_rates(found: dict):
    colours = {name: k % COLOURS for k, name in enumerate(found["curves"])}
    rows = [
        Dot(
            found["labels"]["arms"][name],
            colours.get(name),
            _hundredfold(row["win_rate"], row["se"]),
            _hundredfold(row["greedy_win_rate"], row["greedy_se"]),
        )
        for name, row in found["table1"].items()
        if row["decoding"] == "sampled"
    ]
    marks = [(50.0, "even")]
    untouched = found["table1"].get("sft_greedy")
    if untouched:
        marks.append((100 * untouched["win_rate"], "SFT, greedy"))
    return dots(rows, x="win rate, %: filled T = 1, hollow greedy", marks=marks)


def _hundredfold(mean: float, error: float | None) -> tuple[float, float | None]:
    return 100 * mean, None if error is None else 100 * error


def _heatmaps(found: dict) -> list[dict]:
    """Each response's lines of tokens; a reward model has one colour scale for the page."""
    rewards = {}
    for item in found["heatmaps"]:
        for name, side in item["by"].items():
            rewards.setdefault(name, []).extend(r or 0.0 for r in side["rewards"])
    scale = {
        name: heatmap.colour_limit([{"sides": [{"rewards": all_of_it}]}])
        for name, all_of_it in rewards.items()
    }
    labels = found["labels"]["reward_models"]
    return [
        {
            "prompt": item["prompt"],
            "gold": report_tables.number(item["gold"]),
            "sides": [
                {
                    "label": labels.get(name, name),
                    "limit": scale[name],
                    "numbered": len(side["tokens"]) <= _NUMBERED,
                    "tokens": [
                        {
                            "text": _visible(text),
                            "reward": report_tables.number(reward, digits=2),
                            "low": (reward or 0) < 0,
                            "share": min(1.0, abs(reward or 0) / scale[name]) * 0.8,
                        }
                        for text, reward in zip(side["tokens"], side["rewards"], strict=True)
                    ],
                }
                for name, side in item["by"].items()
            ],
        }
        for item in found["heatmaps"]
    ]


def _visible(text: str) -> str:
    """A token in its box: outer blanks gone, line ends to be seen, nothing that steers text."""
    text = text.replace("\n", "↵").replace("\t", "⇥").strip() or "␣"
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
