"""Every kind of file that is read, and every fault in one with its `file:line` sentence."""

import datetime
import json
import re

import pyarrow
import pyarrow.parquet
import pytest

from fgrlhf_jax.data.records import Edit, Instruction, Preference, read, read_with_rows, split
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime.files import write_jsonl

EDIT = {"instruction": "Sum up.", "input": "A text.", "original": "It rains.", "edited": "Sun."}
PREFERENCE = {
    "instruction": "Name a fruit.",
    "input": "",
    "output_1": "Pear.",
    "output_2": "Brick.",
    "preference": 1,
}
INSTRUCTION = {"instruction": "Name a fruit.", "input": "", "output": "Fig."}


def lines(*rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def changed(row: dict, **fields) -> dict:
    """`row` with other fields; ... takes a field out."""
    return {name: value for name, value in (row | fields).items() if value is not ...}


# --- what is read ----------------------------------------------------------------------------


def test_three_kinds_in_one_file(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(EDIT, PREFERENCE, INSTRUCTION))
    assert read(str(tmp_path / "a.jsonl")) == [
        Edit("Sum up.", "A text.", "It rains.", "Sun."),
        Preference("Name a fruit.", "", "Pear.", "Brick.", 1),
        Instruction("Name a fruit.", "", "Fig."),
    ]


def test_edit_with_everything(tmp_path):
    row = {
        **changed(EDIT, input=None, id=7, annotator="human", preference=[1, 0], output_1="x"),
        "error_spans": [{"start": 0, "end": 2, "type": "Wrong"}, [3, 9]],
    }
    (tmp_path / "a.jsonl").write_bytes(lines(row))
    (edit,) = read(str(tmp_path / "a.jsonl"))
    assert edit == Edit("Sum up.", "", "It rains.", "Sun.", "7", ((0, 2), (3, 9)))
    assert [edit.original[start:end] for start, end in edit.error_spans] == ["It", "rains."]


@pytest.mark.parametrize(("value", "expected"), [(1, 1), (2, 2), (1.0, 1), (2.0, 2)])
def test_preference_as_number(tmp_path, value, expected):
    (tmp_path / "a.jsonl").write_bytes(lines(changed(PREFERENCE, preference=value, input=...)))
    (record,) = read(str(tmp_path / "a.jsonl"))
    assert record.preference == expected
    assert type(record.preference) is int
    assert record.input == ""


@pytest.mark.parametrize(
    "row",
    [
        changed(INSTRUCTION, output=...),
        changed(INSTRUCTION, output=None),
        {"instruction": "Name a fruit.", "dataset": "helpful_base"},  # alpaca_eval's
    ],
)
def test_a_prompt_needs_no_output(tmp_path, row):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(INSTRUCTION, row, EDIT))
    prompt = Instruction("Name a fruit.", "", "")
    assert read(str(path), prompts=True) == [Instruction(**INSTRUCTION), prompt, Edit(**EDIT)]
    assert read_with_rows(str(path), prompts=True)[1] == (prompt, row)
    with pytest.raises(InputError, match=r"a\.jsonl:2: .*'output'"):
        read(str(path))
    path.write_bytes(lines(changed(INSTRUCTION, output="")))
    assert read(str(path)) == [prompt]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (changed(INSTRUCTION, instruction=...), "misses the field 'instruction'"),
        (changed(INSTRUCTION, output=5), "'output' is 5, not a string"),
        (changed(EDIT, edited=...), "misses the field 'edited'"),
        (changed(PREFERENCE, preference=...), "misses the field 'preference'"),
    ],
)
def test_what_is_wrong_with_a_prompt(tmp_path, row, message):
    (tmp_path / "a.jsonl").write_bytes(lines(INSTRUCTION, row))
    with pytest.raises(InputError, match=rf"a\.jsonl:2: .*{message}"):
        read(str(tmp_path / "a.jsonl"), prompts=True)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\xef\xbb\xbf" + lines(EDIT, EDIT), id="byte order mark"),
        pytest.param(b"\n" + lines(EDIT) + b"  \n\n" + lines(EDIT) + b"\n", id="blank lines"),
        pytest.param(lines(EDIT, EDIT).replace(b"\n", b"\r\n"), id="Windows line ends"),
        pytest.param(lines(EDIT, EDIT).rstrip(), id="no last line end"),
    ],
)
def test_forms_of_jsonl(tmp_path, data):
    for name in ("a.jsonl", "a.json"):
        (tmp_path / name).write_bytes(data)
        assert read(str(tmp_path / name)) == [Edit(**EDIT)] * 2


def test_a_line_separator_inside_a_text_is_text(tmp_path):
    row = changed(EDIT, edited="one\u2028two\x85three")
    (tmp_path / "a.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    assert read(str(tmp_path / "a.jsonl")) == [Edit(**row)]


def test_json_list_and_parquet(tmp_path):
    rows = [changed(PREFERENCE, input=None), PREFERENCE]
    (tmp_path / "a.json").write_text("\ufeff\n" + json.dumps(rows, indent=1), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.json", "a.parquet"):
        assert read(str(tmp_path / name)) == [Preference(**PREFERENCE)] * 2


def test_several_sources_in_order(tmp_path):
    for name, row in (("a", EDIT), ("b, c", PREFERENCE), ("d", INSTRUCTION)):
        (tmp_path / f"{name}.jsonl").write_bytes(lines(row))
    kinds = [type(r) for r in read(f"{tmp_path / 'd.jsonl'}, {tmp_path / 'a.jsonl'}")]
    assert kinds == [Instruction, Edit]
    assert len(read(str(tmp_path / "b, c.jsonl"))) == 1  # a comma in the name of a file
    with pytest.raises(InputError, match=r"a\.jsonl,': names no file"):
        read(f"{tmp_path / 'a.jsonl'},")


# --- what is refused --------------------------------------------------------------------------

BAD_LINES = [
    (b'{"instruction": "a",}', "malformed JSON"),
    (b'{"instruction": "a', "malformed JSON"),
    (lines(EDIT).strip() * 2, "malformed JSON"),
    (b"[" * 100_000, "cannot be read|malformed"),
    (b'{"instruction": ' + b"1" * 5000 + b"}", "cannot be read"),
    (b"[1, 2]", "is not an object"),
    (b'"text"', "is not an object"),
    (b"null", "is not an object"),
    (lines(EDIT).strip().replace(b"rains", b"r\xe9gne"), "invalid UTF-8 .byte 0xe9.; save the"),
    (b"{}", "misses the field 'instruction'"),
    (b'{"prompt": "a", "answer": "b"}', "has prompt, answer"),
]
BAD_FIELDS = [
    (EDIT, "instruction", ..., "misses the field 'instruction'"),
    (EDIT, "original", ..., "misses the field 'original'"),
    (EDIT, "edited", ..., "misses the field 'edited'"),
    (INSTRUCTION, "output", ..., "misses the field 'output'"),
    (PREFERENCE, "output_1", ..., "misses the field 'output_1'"),
    (PREFERENCE, "output_2", ..., "misses the field 'output_2'"),
    (PREFERENCE, "preference", ..., "misses the field 'preference'"),
    (EDIT, "edited", "\ud83d", "invalid Unicode"),
    (EDIT, "edited", 5, "'edited' is 5, not a string"),
    (EDIT, "original", None, "'original' is null, not a str"),
    (INSTRUCTION, "output", ["a"], "is ..a.., not a string"),
    (EDIT, "input", 0, "'input' is 0, not a string"),
    (EDIT, "instruction", {}, "'instruction' is {}, not"),
    (EDIT | {"input": ""}, "instruction", " ", "are both empty"),
    (EDIT, "edited", "It rains.", "original and edited are equal"),
    (PREFERENCE, "output_2", "Pear.", "output_1 and output_2 are equal"),
    (EDIT, "edited", "", "the response 'edited' is empty"),
    (EDIT, "original", " \n", "the response 'original' is empty"),
    (PREFERENCE, "output_1", "", "the response 'output_1' is empty"),
    *(
        (PREFERENCE, "preference", value, f"preference is {json.dumps(value)}; it must be 1 or")
        for value in (0, 3, 1.5, "1", True, None, float("nan"))
    ),
    *(
        (EDIT, "error_spans", [span], "error_spans holds .* offsets into the original .0 to 9")
        for span in ([0, 10], {"start": 3, "end": 1}, "It", {"start": 3})
    ),
]
BAD_LINES += [(lines(changed(row, **{name: x})), says) for row, name, x, says in BAD_FIELDS]


@pytest.mark.parametrize(("data", "message"), BAD_LINES, ids=[m for _, m in BAD_LINES])
def test_bad_line_is_named(tmp_path, data, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(EDIT) + b"\n" + data.strip() + b"\n" + lines(EDIT))
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}:3: .*({message})") as caught:
        read(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 320


def test_bad_row_of_a_list_or_table_is_named(tmp_path):
    rows = [EDIT, EDIT, changed(EDIT, edited=None)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.json", "a.parquet"):
        with pytest.raises(InputError, match=rf"{name}:row 3: the field 'edited' is null"):
            read(str(tmp_path / name))


def test_bad_parquet_files(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(lines(EDIT))
    with pytest.raises(InputError, match=r"a\.parquet: is not a readable Parquet file"):
        read(str(path))
    texts = pyarrow.array([b"caf\xe9"]).cast(pyarrow.string(), safe=False)
    pyarrow.parquet.write_table(pyarrow.table({"instruction": texts, "output": ["a"]}), path)
    with pytest.raises(InputError, match=r"a\.parquet: .*UTF-8"):
        read(str(path))


def test_malformed_list_names_the_line(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\n[{"a": 1},\n {"a" 2}]\n')
    with pytest.raises(InputError, match=r"a\.json:3: malformed JSON .*column 7"):
        read(str(path))
    path.write_bytes(b'[{"a": "x"},\n{"a": "\xff"}]')
    with pytest.raises(InputError, match=r"a\.json:2: invalid UTF-8"):
        read(str(path))


@pytest.mark.parametrize(
    "spec",
    [
        *("none.jsonl", "none.json", "none.parquet", "a.jsonl:3", "a"),
        *("x" * 5000 + ".jsonl", "a\0b.jsonl", "folder/" * 1000 + "x.json"),
    ],
)
def test_missing_file_and_impossible_path(spec):
    with pytest.raises(InputError, match="there is no such file"):
        read(spec)


@pytest.mark.parametrize("data", [b"", b"\n \n", b"\xef\xbb\xbf", b"[]"])
def test_empty_file(tmp_path, data):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.json: holds no rows"):
        read(str(tmp_path / "a.json"))


def test_one_empty_file_of_two(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(EDIT))
    table = pyarrow.Table.from_pylist([EDIT])[:0]
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet: holds no rows"):
        read(f"{tmp_path / 'a.jsonl'},{tmp_path / 'b.parquet'}")


def test_folder_and_foreign_file(tmp_path):
    with pytest.raises(InputError, match="is a folder; name the files in it"):
        read(str(tmp_path))
    (tmp_path / "a.csv").write_text("instruction,output\n")
    with pytest.raises(InputError, match=r"a\.csv: is none of \.jsonl, \.json, \.parquet"):
        read(str(tmp_path / "a.csv"))


def test_unreadable_file(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_bytes(lines(EDIT))

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    # By hand, since permissions do not bind root.
    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(InputError, match=r"a\.jsonl: cannot be read \(Permission denied\)"):
        read(str(tmp_path / "a.jsonl"))


# --- writing ----------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path):
    records = [
        Edit("Übe.", "a\nb", "漢字 \u2028", 'quote " \\', "x/1", ((0, 2), (1, 3))),
        Preference("Name.", "", "one", "two", 2, "p"),
        Instruction("Name.", "", ""),
    ]
    write_jsonl(tmp_path / "new/folder/a.jsonl", records)
    assert read(str(tmp_path / "new/folder/a.jsonl")) == records
    write_jsonl(tmp_path / "rows.jsonl", [EDIT | {"rewards": [0.5, -1.0]}])
    assert json.loads((tmp_path / "rows.jsonl").read_text())["rewards"] == [0.5, -1.0]


def test_what_json_cannot_say_is_written_as_text(tmp_path):
    """A field of a Parquet file that a row keeps."""
    when = datetime.datetime(2024, 5, 1, 12, 30)
    rows = pyarrow.Table.from_pylist([EDIT | {"when": when, "raw": b"x"}])
    pyarrow.parquet.write_table(rows, tmp_path / "a.parquet")
    ((record, row),) = read_with_rows(str(tmp_path / "a.parquet"))
    write_jsonl(tmp_path / "a.jsonl", [row | {"rewards": [0.5]}])
    ((again, written),) = read_with_rows(str(tmp_path / "a.jsonl"))
    assert again == record
    assert written == EDIT | {"when": str(when), "raw": "b'x'", "rewards": [0.5]}


# --- train and validation ---------------------------------------------------------------------


def many(count: int) -> list[Instruction]:
    """Rows whose prompts recur: three rows a prompt, told apart by input or instruction."""
    return [Instruction(f"Do {n % 40}.", f"{n % 70}", f"{n}") for n in range(count)]


def test_split_by_prompt():
    records = many(2000)
    train, validation = split(records, 0.2, seed=0)
    prompts = [{(r.instruction, r.input) for r in side} for side in (train, validation)]
    assert not prompts[0] & prompts[1]
    assert sorted(train + validation, key=lambda r: int(r.output)) == records
    for side in (train, validation):
        assert [int(r.output) for r in side] == sorted(int(r.output) for r in side)
    assert 0.12 < len(prompts[1]) / len(prompts[0] | prompts[1]) < 0.28


def test_split_is_a_function_of_seed_and_prompt():
    records = many(2000)
    validation = split(records, 0.2, seed=0)[1]
    assert split(records, 0.2, seed=0)[1] == validation
    assert split(records, 0.2, seed=1)[1] != validation
    # A row's side does not depend on the others, and a smaller share is a part of a larger.
    assert split(records[500:], 0.2, seed=0)[1] == [
        r for r in validation if int(r.output) >= 500
    ]
    assert set(split(records, 0.1, seed=0)[1]) < set(validation)
    spaced = [Instruction(f" {r.instruction}\n", r.input, r.output) for r in records]
    assert [r.output for r in split(spaced, 0.2, seed=0)[1]] == [r.output for r in validation]


def test_split_looks_at_the_input_too():
    """One instruction for every row, as in a file of summaries."""
    train, validation = split([Instruction("Sum up.", f"{n}", "") for n in range(200)], 0.5, 0)
    assert 70 < len(train) < 130
    assert len(train) + len(validation) == 200


@pytest.mark.parametrize(("share", "side"), [(0.0, "validation"), (1.0, "training")])
def test_split_with_an_empty_side(share, side):
    with pytest.raises(InputError, match=f"of 50 rows none is left for {side}"):
        split(many(50), share, seed=0)
