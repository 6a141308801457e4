"""Explains the fields of configs: the text of ``--help``, and ``docs/configuration.md``.

python -m launch.shared.explain > docs/configuration.md
"""

import importlib
import shutil
import textwrap
from collections.abc import Mapping
from types import ModuleType

from configs.fields import Field, close_groups
from fgrlhf_jax.runtime.run_dir import flatten
from launch.__main__ import list_commands

HEAD = """\
# Configuration

A command takes `--config=FILE.py[:ARGUMENT]` and any number of `--config.FIELD=VALUE`, such as
`python -m launch.sft --config=configs/sft.py:smollm2 --config.optimizer.learning_rate=1e-4`.
FILE.py is a file below, or your own file whose `get_config` returns a ConfigDict with the same
fields: `config = sft.get_config("smollm2")`, assignments, `return config`. `--help` shows the most
used fields with their current values, `--help=all` shows every field. Commands reject values out
of bounds, misspelt fields and the config of another command before they read any file.

This page is generated: `python -m launch.shared.explain > docs/configuration.md`.
"""


def help_text(doc: str, values: Mapping, fields: Mapping[str, Field], show_all: bool) -> str:
    """The text of ``--help``: the fields in groups, with current values and explanations.

    Args:
      values: current values by dotted name.
      show_all: show all fields, not only those with ``Field.first``.
    """
    width = min(max(shutil.get_terminal_size((100, 0)).columns, 72), 120)
    groups: dict[str, list[str]] = {}
    described = {name: field for name, field in fields.items() if show_all or field.first}
    custom = {name: Field("", "", group="Your own") for name in values if name not in fields}
    for name, field in (described | custom).items():
        choices = f" [{field.values()}]" if field.choices or field.at_most is not None else ""
        entry = _help_entry(f"    {name}={values[name]!r}", field.help + choices, width)
        groups.setdefault(field.group or "Fields", []).append(entry)
    lines = [line for title, entries in groups.items() for line in (f"  {title}", *entries)]
    rest = len(fields) - len(described)
    if rest:
        lines.append(f"--help=all explains the other {rest} fields too.")
    return "\n".join([doc.strip(), "", "--config.FIELD=VALUE, current values:", *lines])


def _help_entry(assignment: str, text: str, width: int) -> str:
    """Formats a field and its meaning in two columns."""
    column = 38
    wrapped = textwrap.wrap(text, width - column, break_long_words=False) or [""]
    lines = [" " * column + line for line in wrapped]
    if len(assignment) < column - 1:
        return "\n".join([assignment.ljust(column) + wrapped[0], *lines[1:]]).rstrip()
    return "\n".join([assignment, *lines])


def page() -> str:
    """The content of docs/configuration.md."""
    users: dict[str, list[str]] = {}
    for name in list_commands():
        command = importlib.import_module(f"launch.{name}")
        for spec in (command.CONFIG, *getattr(command, "OTHERS", ())):
            users.setdefault(spec.partition(":")[0], []).append(f"`launch.{name}`")
    return "\n".join([HEAD, *(_section(file, commands) for file, commands in users.items())])


def _section(file: str, commands: list[str]) -> str:
    """The section of one config: a table per group of fields, and a table of its variants."""
    config = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    summary = config.__doc__.splitlines()[0].replace("``", "`")
    lines = [f"## {file}", "", f"For {', '.join(commands)}. {summary}", ""]
    groups: dict[str, list[tuple[str, ...]]] = {}
    for name, field in config.FIELDS.items():
        row = (f"`{name}`", f"`{field.default!r}`", field.values(), field.help)
        groups.setdefault(field.group, []).append(row)
    for title, rows in groups.items():
        lines += [f"**{title}**", ""] if title else []
        lines += [*_table(("field", "default", "values", "meaning"), rows), ""]
    if hasattr(config, "VARIANTS"):
        lines += ["**What the arguments change**", "", *_variants(config), ""]
    return "\n".join(lines)


def _variants(config: ModuleType) -> list[str]:
    """A table of the fields whose values differ from the default in some variant."""
    configs = [config.get_config(name) for name in config.VARIANTS]
    fields = close_groups(configs[0], config.FIELDS)
    flat, first = [flatten(variant.to_dict()) for variant in configs], flatten(configs[0].to_dict())
    rows = [
        (f"`{name}`", *("" if value == field.default else f"`{value!r}`" for value in values))
        for name, field in fields.items()
        if set(values := [variant[name] for variant in flat]) - {field.default}
        and (name in config.FIELDS or set(values) != {first[name]})  # not: equal in all variants
    ]
    return _table(("field", *config.VARIANTS), rows)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *escaped)]


if __name__ == "__main__":
    print(page(), end="")
