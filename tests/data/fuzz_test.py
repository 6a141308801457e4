"""Mutated rows and files: each is read or refused with one sentence, and what is read is kept."""

import copy
import io
import json
import random

import pyarrow
import pyarrow.parquet
import pytest
from format_cases import LAYOUTS, TREE
from mutation_cases import JUNK, paths

from fgrlhf_jax.data import formats, message_trees, records, row_fields, sources
from fgrlhf_jax.data.convert import TARGETS, convert_records
from fgrlhf_jax.errors import InputError

ROWS = [row for row, _ in LAYOUTS.values()] + TREE
ROWS += [
    {"instruction": "a", "input": "b", "original": "c", "edited": "d", "error_spans": [[0, 1]]},
    {"instruction": "a", "output": "b", "generator": "m", "finished": True, "tokens": ["b"]},
    {"instruction": "a\n\nb", "input": "b", "raw_instruction": "a"}
    | {"output": "c", "generator": "m"},
    {"instruction": "a", "predictions": ["b", "c"], "preference": [1], "id": 3},
]
ENDS = ("", "\r\n", "\u2028", "é", "😀")


def attempt(function, *args, **options):
    """(what a function returns, what it is refused with)."""
    try:
        return function(*args, **options), ""
    except InputError as error:
        return None, str(error)


def content(record: records.Record) -> tuple:
    """What must be kept: all but the order of a preference's responses, and a blank output."""
    if not isinstance(record, records.Preference):
        prompt = record.messages or records.shown_prompt(record)
        return type(record), prompt, records.responses_of(record)
    return records.better_response(record), *records.better_and_worse(record), record.id


def mutate(row: dict, rng: random.Random):
    """A copy of a row in which up to four values or names are others."""
    row = copy.deepcopy(row)
    for _ in range(rng.randrange(1, 5)):
        if not row:
            return rng.choice(JUNK)
        *path, last = rng.choice([*paths(row)])
        parent = row
        for key in path:
            parent = parent[key]
        match rng.randrange(5):
            case 0:
                parent[last] = copy.deepcopy(rng.choice(JUNK))
            case 1:
                del parent[last]
            case 2:
                row[rng.choice(row_fields.FIELDS)] = copy.deepcopy(parent[last])
            case 3:
                name, value = rng.choice([*rng.choice(ROWS).items()])
                row[name] = copy.deepcopy(value)
            case 4 if isinstance(parent[last], str):
                text = parent[last]
                parent[last] = text[: rng.randrange(len(text) + 1)] + rng.choice(ENDS)
    return row


def test_mutated_rows(request):
    """What is read becomes every kind of row or a sentence, and of its own kind the same record."""
    rng, read = random.Random(0), 0
    count = request.config.getoption("--fuzz-records")
    for _ in range(count):
        row, need = mutate(rng.choice(ROWS), rng), rng.choice(sources.NEEDS)
        columns = {}
        if isinstance(row, dict) and row and rng.random() < 0.2:
            columns = {rng.choice(row_fields.FIELDS): str(rng.choice([*row]))}
        parsed, message = attempt(formats.parse_row, row, "a:1", need, columns)
        assert parsed is not None or message.startswith("a:1: ")
        assert len(message) < 900
        read += bool(parsed)
        row = sources.with_id(row, columns) if parsed else row
        for record in parsed if parsed and need != "candidates" else ():
            for target in TARGETS:
                converted, message = attempt(convert_records, [(record, row)], target)
                assert len(message) < 900
                if converted:
                    (again,) = formats.parse_row(converted[0][0], "b:1", "prompts")
                    assert target != records.kind_of(record) or content(again) == content(record)
    assert 0.1 * count < read < 0.9 * count


def test_mutated_trees(request):
    rng = random.Random(1)
    for _ in range(request.config.getoption("--fuzz-records") // 50):
        rows = [mutate(row, rng) if rng.random() < 0.3 else row for row in TREE]
        rows = [(f"a:{n}", row) for n, row in enumerate(rows, 1)]
        for where, row in message_trees.unfold(rows, rng.choice(sources.NEEDS)):
            parsed, message = attempt(formats.parse_row, row, where)
            assert parsed or message.startswith("a:")


def parquet_of(rows: list[dict]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


ULTRA = [LAYOUTS["UltraFeedback binarized"][0]] * 4
FILES = {
    "a.jsonl": b"\n".join(json.dumps(row).encode() for row in ULTRA),
    "b.json": json.dumps({"data": ULTRA}, indent=1).encode(),
    "c.csv": b"prompt,chosen,rejected\n" + b'"a ""b""",c,"d\n e"\n' * 4,
    "d.parquet": parquet_of(ULTRA),
}


@pytest.mark.parametrize("name", FILES)
def test_mutated_files(request, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    rng = random.Random(2)
    for _ in range(request.config.getoption("--fuzz-records") // 50):
        data = bytearray(FILES[name])
        for _ in range(rng.randrange(1, 4)):
            start = rng.randrange(len(data))
            data[start : start + rng.randrange(9)] = rng.randbytes(rng.randrange(9))
        (tmp_path / name).write_bytes(data[: rng.choice((None, rng.randrange(len(data) + 1)))])
        read, message = attempt(sources.read, name, refused=rng.choice((None, [])))
        assert read or message.startswith(name)
        assert len(message) < 900
