"""Unexpected values, and the places in a row where they can be put."""

import datetime

JUNK = [None, "", " ", "a b", "\ud83d", "\x00\x1b[31m", "\n\nHuman: a\n\nAssistant: b", "x" * 3000]
JUNK += [0, -3, 1e999, float("nan"), True, False, 2**80, b"\xff", datetime.datetime(1, 1, 1)]
JUNK += [[], {}, [[]], [None], {"role": "user"}, [{"from": "gpt"}], {"a": {1: 2}}, [["deep"]] * 3]
JUNK += ["[1, 2", '[{"role": "user", "content": "a"}]', {"": ""}]
JUNK += [[{"role": "system", "content": 0}]]


def paths(value, path=()):
    """The paths (tuples of keys) of all nested values."""
    items = value.items() if isinstance(value, dict) else []
    for key, inner in enumerate(value) if isinstance(value, list) else items:
        yield (*path, key)
        yield from paths(inner, (*path, key))
