"""Every kind of file that is read, and every fault in one with its `file:line` sentence."""

import datetime
import json
import re

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from fgrlhf_jax.data.records import (
    Edit,
    Instruction,
    Preference,
    read,
    read_with_rows,
)
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


@pytest.mark.parametrize(("given", "meant"), [(1, 1), (2, 2), (1.0, 1), (2.0, 2)])
def test_preference_as_number(tmp_path, given, meant):
    (tmp_path / "a.jsonl").write_bytes(lines(changed(PREFERENCE, preference=given, input=...)))
    (record,) = read(str(tmp_path / "a.jsonl"))
    assert record.preference == meant
    assert type(record.preference) is int
    assert record.input == ""


def test_an_instruction_may_have_no_demonstration(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(changed(INSTRUCTION, output="")))
    assert read(str(tmp_path / "a.jsonl")) == [Instruction("Name a fruit.", "", "")]


PROMPTS = {
    "no output": changed(INSTRUCTION, output=...),
    "null output": changed(INSTRUCTION, output=None),
    "alpaca_eval's": {"instruction": "Name a fruit.", "dataset": "helpful_base"},
}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_needs_no_output(tmp_path, name):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(INSTRUCTION, PROMPTS[name], EDIT))
    prompt = Instruction("Name a fruit.", "", "")
    assert read(str(path), prompts=True) == [Instruction(**INSTRUCTION), prompt, Edit(**EDIT)]
    pairs = read_with_rows(str(path), prompts=True)
    assert pairs[1] == (prompt, PROMPTS[name])
    with pytest.raises(InputError, match=r"a\.jsonl:2: .*'output'"):
        read(str(path))
    (tmp_path / "a.json").write_text(json.dumps([PROMPTS[name]]))
    assert read(str(tmp_path / "a.json"), prompts=True) == [prompt]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (changed(INSTRUCTION, instruction=...), "misses the field 'instruction'"),
        (changed(INSTRUCTION, instruction=" "), "are both empty"),
        (changed(INSTRUCTION, output=5), "'output' is 5, not a string"),
        (changed(EDIT, edited=...), "misses the field 'edited'"),
        (changed(PREFERENCE, preference=...), "misses the field 'preference'"),
    ],
)
def test_what_is_wrong_with_a_prompt(tmp_path, row, says):
    (tmp_path / "a.jsonl").write_bytes(lines(INSTRUCTION, row))
    with pytest.raises(InputError, match=rf"a\.jsonl:2: .*{says}"):
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


# --- datasets ids, loaded from local folders of the same form ---------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A working folder in which org/name is found, and no cache outside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(
        datasets.config, "HF_MODULES_CACHE", tmp_path / "modules", raising=False
    )
    datasets.disable_progress_bars()
    yield tmp_path
    datasets.enable_progress_bars()


def test_dataset_id(hub):
    (hub / "org/name").mkdir(parents=True)
    (hub / "org/name/train.jsonl").write_bytes(lines(EDIT, EDIT))
    (hub / "org/name/test.jsonl").write_bytes(lines(EDIT))
    assert read("org/name:default:train") == [Edit(**EDIT)] * 2
    assert read("org/name:default:test") == [Edit(**EDIT)]
    assert len(read("org/name:default")) == 2  # train, as nothing else is said
    assert len(read("org/name:default:test,org/name::train")) == 3


def test_dataset_id_of_parquet_with_one_split(hub):
    (hub / "farm/pairs").mkdir(parents=True)
    rows = [PREFERENCE, changed(PREFERENCE, preference=3)]
    table = pyarrow.Table.from_pylist
    pyarrow.parquet.write_table(table(rows[:1]), hub / "farm/pairs/validation.parquet")
    assert read("farm/pairs:default") == [Preference(**PREFERENCE)]
    pyarrow.parquet.write_table(table(rows), hub / "farm/pairs/validation.parquet")
    with pytest.raises(InputError, match="farm/pairs:default:row 2: preference is 3"):
        read("farm/pairs:default")


def test_dataset_id_faults(hub):
    (hub / "org/name").mkdir(parents=True)
    for name in ("dev", "test"):
        (hub / f"org/name/{name}.jsonl").write_bytes(lines(EDIT))
    for spec, message in (
        ("org/name:large:test", "org/name:large:test: .*'large'.*default"),
        ("org/name:default:gold", r"org/name:default:gold: .*\"gold\".*validation.*test"),
        ("org/name:default", "has the splits test, validation; choose one: org/name:default:"),
        ("no_such/thing", "no_such/thing: datasets cannot load it .*; give ORG/NAME"),
    ):
        with pytest.raises(InputError, match=message):
            read(spec)


def test_dataset_script(hub):
    """As AlpacaFarm's on the hub: its data files are named instead."""
    (hub / "org/name").mkdir(parents=True)
    (hub / "org/name/name.py").write_text("import datasets\n")
    with pytest.raises(InputError, match=r"script.*give its data files"):
        read("org/name::")


# --- what is refused --------------------------------------------------------------------------

BAD_ROWS = {
    "malformed JSON": (b'{"instruction": "a",}', "malformed JSON"),
    "truncated JSON": (b'{"instruction": "a', "malformed JSON"),
    "two objects on a line": (lines(EDIT).strip() * 2, "malformed JSON"),
    "deeply nested": (b"[" * 100_000, "cannot be read|malformed"),
    "endless number": (b'{"instruction": ' + b"1" * 5000 + b"}", "cannot be read"),
    "a list": (b"[1, 2]", "is not an object"),
    "a string": (b'"text"', "is not an object"),
    "null": (b"null", "is not an object"),
    "invalid UTF-8": (
        lines(EDIT).strip().replace(b"rains", b"r\xe9gne"),
        "invalid UTF-8 .byte 0xe9.; save the file as UTF-8",
    ),
    "half a surrogate pair": (lines(changed(EDIT, edited="\ud83d")), "invalid Unicode"),
    "no field": (b"{}", "misses the field 'instruction'"),
    "unknown fields": (b'{"prompt": "a", "answer": "b"}', "has prompt, answer"),
    "no instruction": (lines(changed(EDIT, instruction=...)), "misses the field 'instruction'"),
    "no original": (lines(changed(EDIT, original=...)), "misses the field 'original'"),
    "no edited": (lines(changed(EDIT, edited=...)), "misses the field 'edited'"),
    "no output": (lines(changed(INSTRUCTION, output=...)), "misses the field 'output'"),
    "no output_2": (lines(changed(PREFERENCE, output_2=...)), "misses the field 'output_2'"),
    "no output_1": (lines(changed(PREFERENCE, output_1=...)), "misses the field 'output_1'"),
    "no preference": (
        lines(changed(PREFERENCE, preference=...)),
        "misses the field 'preference'",
    ),
    "number for a text": (lines(changed(EDIT, edited=5)), "'edited' is 5, not a string"),
    "null for a text": (lines(changed(EDIT, original=None)), "'original' is null, not a str"),
    "list for a text": (lines(changed(INSTRUCTION, output=["a"])), "is ..a.., not a string"),
    "number for an input": (lines(changed(EDIT, input=0)), "'input' is 0, not a string"),
    "object instruction": (lines(changed(EDIT, instruction={})), "'instruction' is {}, not"),
    "equal texts": (lines(changed(EDIT, edited="It rains.")), "original and edited are equal"),
    "equal outputs": (
        lines(changed(PREFERENCE, output_2="Pear.")),
        "output_1 and output_2 are equal",
    ),
    "preference 0": (lines(changed(PREFERENCE, preference=0)), "preference is 0; it must be 1"),
    "preference 3": (lines(changed(PREFERENCE, preference=3)), "preference is 3"),
    "preference 1.5": (lines(changed(PREFERENCE, preference=1.5)), "preference is 1.5"),
    "preference text": (lines(changed(PREFERENCE, preference="1")), 'preference is "1"'),
    "preference true": (lines(changed(PREFERENCE, preference=True)), "preference is true"),
    "preference null": (lines(changed(PREFERENCE, preference=None)), "preference is null"),
    "preference NaN": (
        lines(changed(PREFERENCE, preference=float("nan"))),
        "preference is NaN",
    ),
    "empty edited": (lines(changed(EDIT, edited="")), "the response 'edited' is empty"),
    "blank original": (
        lines(changed(EDIT, original=" \n")),
        "the response 'original' is empty",
    ),
    "empty output": (
        lines(changed(PREFERENCE, output_1="")),
        "the response 'output_1' is empty",
    ),
    "empty prompt": (lines(changed(EDIT, instruction=" ", input="")), "are both empty"),
    "span beyond": (lines(EDIT | {"error_spans": [[0, 10]]}), "error_spans holds .0, 10."),
    "span backwards": (lines(EDIT | {"error_spans": [{"start": 3, "end": 1}]}), "error_spans"),
    "span of words": (lines(EDIT | {"error_spans": ["It"]}), "error_spans holds 'It'"),
    "span half": (lines(EDIT | {"error_spans": [{"start": 3}]}), "error_spans"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_line_is_named(tmp_path, name):
    data, message = BAD_ROWS[name]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(EDIT) + b"\n" + data.strip() + b"\n" + lines(EDIT))
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}:3: .*({message})") as caught:
        read(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 320


def test_bad_row_of_a_list_or_table_is_named(tmp_path):
    rows = [PREFERENCE, PREFERENCE, changed(PREFERENCE, preference=4)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.json", "a.parquet"):
        with pytest.raises(InputError, match=rf"{name}:row 3: preference is 4"):
            read(str(tmp_path / name))


def test_parquet_null_and_nan(tmp_path):
    rows = [EDIT, changed(EDIT, edited=None)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet:row 2: the field 'edited' is null"):
        read(str(tmp_path / "a.parquet"))


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


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_missing_file(tmp_path, suffix):
    with pytest.raises(InputError, match=rf"none\.{suffix}: there is no such file"):
        read(str(tmp_path / f"none.{suffix}"))


@pytest.mark.parametrize(
    "spec", ["x" * 5000 + ".jsonl", "a\0b.jsonl", "folder/" * 1000 + "x.json", "a.jsonl:3", "a"]
)
def test_impossible_path(spec):
    with pytest.raises(InputError, match="there is no such file"):
        read(spec)


@pytest.mark.parametrize("data", [b"", b"\n \n", b"\xef\xbb\xbf", b"[]"])
def test_empty_file(tmp_path, data):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.json: holds no rows"):
        read(str(tmp_path / "a.json"))


def test_empty_parquet(tmp_path):
    table = pyarrow.Table.from_pylist([EDIT])[:0]
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: holds no rows"):
        read(str(tmp_path / "a.parquet"))


def test_one_bad_file_of_two(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(EDIT))
    (tmp_path / "b.jsonl").write_bytes(b"")
    with pytest.raises(InputError, match=r"b\.jsonl: holds no rows"):
        read(f"{tmp_path / 'a.jsonl'},{tmp_path / 'b.jsonl'}")


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


def test_writing_is_all_or_nothing(tmp_path):
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [PREFERENCE])
    (tmp_path / "link.jsonl").hardlink_to(path)
    write_jsonl(path, [EDIT])  # a new file in its place: who has the old one open keeps it
    assert read(str(tmp_path / "link.jsonl")) == [Preference(**PREFERENCE)]
    (tmp_path / "link.jsonl").unlink()

    def rows():
        yield PREFERENCE
        raise RuntimeError("stopped half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        write_jsonl(path, rows())
    assert read(str(path)) == [Edit(**EDIT)]
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"a\.jsonl: cannot be written"):
        write_jsonl(tmp_path / "file/a.jsonl", [EDIT])
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(InputError, match=r"folder\.jsonl: cannot be written"):
        write_jsonl(tmp_path / "folder.jsonl", [EDIT])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.jsonl"]
