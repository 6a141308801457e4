"""Rows of every kind, and files of rows."""

import json

EDIT = {"instruction": "Sum up.", "input": "A text.", "original": "It rains.", "edited": "Sun."}
FRUIT = {"instruction": "Name a fruit.", "input": ""}
PREFERENCE = FRUIT | {"output_1": "Pear.", "output_2": "Brick.", "preference": 1}
INSTRUCTION = FRUIT | {"output": "Fig."}


def lines(*rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def changed(row: dict, **fields) -> dict:
    """`row` with some fields replaced; the value ... removes a field."""
    return {name: value for name, value in (row | fields).items() if value is not ...}
