"""Results as lines and as a Markdown table."""

HEAD = """\
| work | unit | ours | peer | ratio (lowest to highest) | share of the products' FLOP/s | peak GB |
| --- | --- | --: | --: | --: | --: | --: |
"""


def markdown(results: dict) -> str:
    """A table of everything that was compared."""
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
    """The median in bold, and the spread."""
    if "ratio" not in row:
        return "–"
    low, high = row["spread"]
    return f"**{row['ratio']:.2f}** ({low:.2f} to {high:.2f})"


def line(name: str, row: dict) -> str:
    """One result for the terminal."""
    title, unit, ours, peer, ratio_and_spread, shares, memory = cells(row)
    ratio_and_spread = ratio_and_spread.replace("*", "")
    return (
        f"{name}: {title}: ours {ours}, {peer} {unit}; ratio {ratio_and_spread}; "
        f"{shares} of the products' FLOP/s; {memory} GB"
    )


def number(value: float | None) -> str:
    """Three significant digits."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
