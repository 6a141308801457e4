"""Formats the results of ``compare`` as lines of text and as a Markdown table."""

HEAD = """\
| work | unit | ours | peer | ratio (lowest to highest) | share of the products' FLOP/s | peak GB |
| --- | --- | --: | --: | --: | --: | --: |
"""


def markdown(results: dict) -> str:
    """The Markdown table of all results."""
    rows = [row for row in results.values() if "memory_gb" in row]
    return HEAD + "".join(f"| {' | '.join(cells(row))} |\n" for row in rows)


def cells(row: dict) -> list[str]:
    peer = number(row.get("peer"))
    if "peer" in row:
        peer = f"{row['peer_is']} {peer}"
    shares, memory = row["flops_share"], row["memory_gb"]
    return [
        row["title"],
        row["unit"],
        number(row.get("ours")),
        peer,
        ratio(row),
        " / ".join(f"{100 * shares[side]:.0f} %" for side in shares),
        " / ".join(f"{memory[side]:.1f}" for side in memory),
    ]


def ratio(row: dict) -> str:
    """The median ratio in bold and its spread; for decoding also the ratio of the prefill."""
    if "ratio" not in row:
        return "–"
    spread = "{:.2f} to {:.2f}".format(*row["spread"]) if row["spread"] else "one round"
    prefill = f", prefill {row['prefill']['ratio']:.2f}" if "prefill" in row else ""
    return f"**{row['ratio']:.2f}** ({spread}){prefill}"


def line(name: str, row: dict) -> str:
    """One result as a line for the terminal."""
    title, unit, ours, peer, ratio_and_spread, shares, memory = cells(row)
    ratio_and_spread = ratio_and_spread.replace("*", "")
    compiling = f"; ours compiles {number(row.get('compile_seconds'))} s"
    return (
        f"{name}: {title}: ours {ours}, {peer} {unit}; ratio {ratio_and_spread}; "
        f"{shares} of the products' FLOP/s; {memory} GB{compiling}"
    )


def number(value: float | None) -> str:
    """Three significant digits."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
