"""Fields of a config: default value, one line of help, and allowed values.

A config file describes its fields in ``FIELDS``, a dict from dotted names to :class:`Field`, and
builds its ConfigDict from them. Commands check values and print help (``--help``,
``docs/configuration.md``) from these descriptions. ``GROUP.*.FIELD`` is a field of every member of
an open group; users may add members (``--config.arms.mine.learner=dpo``).
"""

import dataclasses
import functools
import math
import re
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from ml_collections import ConfigDict

from fgrlhf_jax.errors import InputError

KINDS = {
    bool: (bool, "True or False"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    str: (str, "text"),
}
MAX_INT = 2**31  # larger integers overflow somewhere, such as in a random seed


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a config.

    Attributes:
      default: default value; also sets the type.
      help: one line: meaning, unit, meaning of 0 or "".
      choices: allowed values; empty: every value of the type.
      at_least: lowest value.
      at_most: highest value.
      first: whether the first screen of ``--help`` shows it.
      group: title of its group in ``--help``.
    """

    default: bool | int | float | str
    help: str
    choices: Collection[str] = ()
    at_least: float | None = None
    at_most: float | None = None
    first: bool = False
    group: str = ""

    def fault(self, value) -> str:
        """What is wrong with a value, the text after ``name=value: ``; "" if it is valid."""
        types, kind = KINDS[type(self.default)]
        if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
            return f"must be {kind}"
        if isinstance(value, float) and not math.isfinite(value):
            return "must be finite"
        if isinstance(self.default, int) and value >= MAX_INT:
            return f"must be below {MAX_INT}"
        if self.choices and value not in self.choices:
            return f"is not one of {', '.join(choice or repr('') for choice in self.choices)}"
        if self.at_least is not None and not value >= self.at_least:
            return f"must be at least {self.at_least:g}"
        if self.at_most is not None and not value <= self.at_most:
            return f"must be at most {self.at_most:g}"
        return ""

    def values(self) -> str:
        """The allowed values as text; "" if every value of the type is allowed."""
        if self.choices:
            return " | ".join(choice or '""' for choice in self.choices)
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least:g} to {self.at_most:g}"
        if self.at_least is not None:
            return f"at least {self.at_least:g}"
        return "" if self.at_most is None else f"at most {self.at_most:g}"


def collect_fields(
    *groups: Mapping[str, Mapping[str, Field]],
    first: str = "",
    defaults: Mapping[str, bool | int | float | str] = MappingProxyType({}),
) -> dict[str, Field]:
    """Merges groups of fields, which are by the group's title, into one dict by dotted name.

    Args:
      first: names of the fields on the first screen of ``--help``, separated by spaces.
      defaults: new defaults by field name.
    """
    fields = {
        name: dataclasses.replace(
            field,
            default=defaults.get(name, field.default),
            group=title,
            first=name in first.split(),
        )
        for each in groups
        for title, members in each.items()
        for name, field in members.items()
    }
    if unknown := {*first.split(), *defaults} - fields.keys():
        raise ValueError(f"no such field: {', '.join(sorted(unknown))}")
    return fields


def make_config(fields: Mapping[str, Field]) -> ConfigDict:
    """Builds a locked config with the default of every field; open groups have no members."""
    nested: dict = {}
    for name, field in fields.items():
        *parents, last = name.split(".*")[0].split(".")
        inner = functools.reduce(lambda outer, key: outer.setdefault(key, {}), parents, nested)
        inner[last] = {} if ".*" in name else field.default
    return ConfigDict(nested).lock()


def add_member(
    config: ConfigDict, fields: Mapping[str, Field], group: str, name: str, **values
) -> None:
    """Adds a member ``group.name`` to an open group: field defaults overridden by ``values``."""
    prefix = f"{group}.*."
    with config.unlocked():
        config[group][name] = {
            key.removeprefix(prefix): field.default
            for key, field in fields.items()
            if key.startswith(prefix)
        } | values


def close_groups(
    config: ConfigDict, fields: Mapping[str, Field], names: Iterable[str] = ()
) -> dict[str, Field]:
    """Replaces each ``GROUP.*.FIELD`` by one field per member of the group.

    Args:
      config: is changed: fields that its members lack are added at their defaults.
      names: dotted names whose members, such as ``mine`` of ``arms.mine.learner``, are added too.
    """
    closed = {name: field for name, field in fields.items() if ".*." not in name}
    for group in {name.partition(".*.")[0]: None for name in fields if name not in closed}:
        new = [name.split(".")[1] for name in names if re.match(rf"{group}\.\w+\.", name)]
        for member in dict.fromkeys([*config[group], *new]):
            add_member(config, fields, group, member, **config[group].get(member, {}))
            prefix = f"{group}.*."
            closed |= {
                name.replace(prefix, f"{group}.{member}."): field
                for name, field in fields.items()
                if name.startswith(prefix)
            }
    return closed


def check_values(values: Mapping, fields: Mapping[str, Field]) -> None:
    """Raises InputError for the first invalid value; ``values`` are by dotted name."""
    for name, field in fields.items():
        if fault := field.fault(values[name]):
            raise InputError(f"{name}={values[name]!r}: {fault}")


def check_argument(argument: str, value: str, choices: Iterable[str], part: str = "") -> None:
    """Raises InputError if a config's argument, or a part of it, is not one of ``choices``."""
    if value not in choices:
        subject = f"{part} {value!r} " if part else ""
        raise InputError(f"{argument}: {subject}is not one of {', '.join(choices)}")
