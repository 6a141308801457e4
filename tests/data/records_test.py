"""Every kind of file that is read, and what is written again."""

import csv
import gzip
import io
import json

import pyarrow
import pyarrow.parquet
import pytest
from record_cases import EDIT, INSTRUCTION, PREFERENCE, changed, lines

from fgrlhf_jax.data import formats, records
from fgrlhf_jax.data.records import Edit, Instruction, Message, Preference, alpaca_eval_prompt
from fgrlhf_jax.data.sources import read, read_rows, read_with_rows
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime.files import write_jsonl


def test_edit_with_everything(write):
    row = changed(EDIT, input=None, id=7, annotator="human", preference=[1, 0], output_1="x")
    row["error_spans"] = [{"start": 0, "end": 2, "type": "Wrong"}, [3, 9]]
    (edit,) = read(write(row))
    assert edit == Edit("Sum up.", "", "It rains.", "Sun.", "7", ((0, 2), (3, 9)))
    assert [edit.original[start:end] for start, end in edit.error_spans] == ["It", "rains."]


def test_a_file_for_alpaca_eval_is_read_again(write):
    """There the instruction is the whole prompt, and its parts stand beside it."""
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    prompts = [Instruction("a", "b", ""), Instruction("a", "", ""), Instruction("", "", "", turns)]
    rows = [alpaca_eval_prompt(prompt) for prompt in prompts]
    texts = ["a\n\nb", "a", "User: a\n\nAssistant: b\n\nUser: c"]
    assert [row["instruction"] for row in rows] == texts
    assert read(write(*rows), need="prompts") == prompts
    with pytest.raises(InputError, match="raw_instruction and input and instruction hold two diff"):
        read(write(rows[0] | {"input": "c"}), need="prompts")


VALUES = [(1, 1), (2, 2), (1.0, 1), (2.0, 2), ("2", 2), ("2.0", 2)]


@pytest.mark.parametrize(("value", "expected"), VALUES)
def test_preference_as_number(write, value, expected):
    (record,) = read(write(changed(PREFERENCE, preference=value, input=...)))
    assert (record.preference, type(record.preference)) == (expected, int)
    assert record.input == ""


@pytest.mark.parametrize(
    "row",
    [
        changed(INSTRUCTION, output=...),
        changed(INSTRUCTION, output=None),
        {"instruction": "Name a fruit.", "dataset": "helpful_base"},  # alpaca_eval's
    ],
)
def test_a_prompt_needs_no_output(write, row):
    path = write(INSTRUCTION, row, EDIT)
    prompt = Instruction("Name a fruit.", "", "")
    assert read(path, need="prompts") == [Instruction(**INSTRUCTION), prompt, Edit(**EDIT)]
    assert read_with_rows(path, need="prompts")[1] == (prompt, row)
    with pytest.raises(InputError, match=r"a\.jsonl:2: .*'output'"):
        read(path)
    assert read(write(changed(INSTRUCTION, output=""))) == [prompt]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\xef\xbb\xbf" + lines(EDIT, EDIT), id="byte order mark"),
        pytest.param(b"\n" + lines(EDIT) + b"  \n\n" + lines(EDIT) + b"\n", id="blank lines"),
        pytest.param(lines(EDIT, EDIT).replace(b"\n", b"\r\n"), id="Windows line ends"),
        pytest.param(lines(EDIT, EDIT).rstrip(), id="no last line end"),
    ],
)
def test_forms_of_jsonl(write, data):
    for name in ("a.jsonl", "a.json"):
        assert read(write(data=data, name=name)) == [Edit(**EDIT)] * 2


def test_a_line_separator_inside_a_text_is_text(write):
    row = changed(EDIT, edited="one\u2028two\x85three")
    assert read(write(data=json.dumps(row, ensure_ascii=False).encode())) == [Edit(**row)]


ROWS = [changed(PREFERENCE, input=None), PREFERENCE]
CSV = b"instruction,output_1,output_2,preference\n" + b'"Name a fruit.",Pear.,"Brick.",1\r\n' * 2


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.json", ("\ufeff\n" + json.dumps(ROWS, indent=1)).encode()),
        ("a.jsonl", json.dumps(ROWS).encode()),
        ("a.json", json.dumps({"version": 1, "data": ROWS}, indent=1).encode()),
        ("a.json", json.dumps({"data": ROWS}).encode()),
        ("a.jsonl.gz", gzip.compress(lines(*ROWS), mtime=0)),
        ("a.csv", b"\xef\xbb\xbf" + CSV),
        ("a.csv.gz", gzip.compress(CSV, mtime=0)),
        ("unpacked.csv.gz", CSV),
        ("packed.jsonl", gzip.compress(lines(*ROWS), mtime=0)),
        ("semicolons.csv", CSV.replace(b",", b";")),
        ("tabs.csv", CSV.replace(b",", b"\t")),
        ("blanks.csv", CSV.replace(b",", b" , ", 2)),
        ("a.parquet", None),
    ],
)
def test_forms_of_files(write, name, data):
    assert read(write(*ROWS, data=data, name=name)) == [Preference(**PREFERENCE)] * 2


def test_one_object_of_several_lines(write):
    write(data=json.dumps(PREFERENCE, indent=1).encode(), name="a.json")
    assert read("a.json") == [Preference(**PREFERENCE)]
    write(data=json.dumps(PREFERENCE, indent=1).replace(": 1", " 1").encode(), name="a.json")
    with pytest.raises(InputError, match=r"^a\.json:6: malformed JSON"):
        read("a.json")


def test_wrong_lines_are_left_out_where_that_is_asked_for(write):
    refused = []
    name = write(data=lines(INSTRUCTION, {"messages": 3}))
    with pytest.raises(InputError, match=r"of each, or leave such rows out with invalid=drop$"):
        read(name)
    assert len(read(name, refused=refused)) == 1
    assert "invalid=drop" not in refused.pop()
    good, torn = lines(INSTRUCTION), b'{"instruction":\n[1]\n\xff\n'
    assert read(write(data=good + torn + good), refused=refused) == [Instruction(**INSTRUCTION)] * 2
    assert [text.split(": ")[0] for text in refused] == ["a.jsonl:2", "a.jsonl:3", "a.jsonl:4"]
    write(data=CSV + b"x,y\n", name="a.csv")
    assert len(read("a.csv", refused=refused)) == 2
    assert refused[-1].startswith("a.csv:4: has 2 cells, the first line 4 names")
    assert len(read(write(data=CSV * 2, name="a.csv"), refused=refused)) == 4
    assert refused[-1].startswith("a.csv:4: repeats the names of the columns")


@pytest.mark.parametrize("show", [json.dumps, repr])
def test_messages_in_cells_are_messages(write, show):
    """As pandas writes lists."""
    user, *answers = (
        '"{}"'.format(show([{"role": role, "content": text}]).replace('"', '""'))
        for role, text in (("user", "Hi"), ("assistant", "it's"), ("assistant", "b"))
    )
    head, row = "prompt,chosen,rejected\n", f"{user},{','.join(answers)}\n"
    (pair,) = rows = read(write(data=f"{head}{row}".encode(), name="a.csv"))
    expected = (Message("user", "Hi"),), "it's", "b"
    assert (pair.messages, pair.output_1, pair.output_2) == expected
    assert read(write(*csv.DictReader(io.StringIO(head + row)), name="a.jsonl")) == rows
    assert read(write(*csv.DictReader(io.StringIO(head + row)), name="a.parquet")) == rows
    write(data=f"{head}{row}".replace("}]", "} {}]").encode(), name="a.csv")  # numpy's
    with pytest.raises(InputError, match=r"a\.csv:2: .* is not a list of messages in JSON; "):
        read("a.csv")
    with pytest.raises(InputError, match=r"a\.csv:1: 'output' names two columns; rename one"):
        read(write(data=b"instruction,output,output\na,b,c\n", name="a.csv"))


CHAT = '[{"role": "user", "content": "Hi"}]'
ANSWERS = ['{"from": "user", "to": "Rome"}', "{'role': 'user'}", CHAT, '{"value": 3} and so on']


@pytest.mark.parametrize("answer", ANSWERS)
def test_other_texts_in_cells_are_texts(write, answer):
    """An answer may be JSON, an input a conversation; a table may have columns without a name."""
    row = {"instruction": "Sum up:", "input": CHAT, "output": answer}
    file = io.StringIO()
    csv.writer(file).writerows([*cells, "", ""] for cells in (row, row.values()))
    assert read(write(data=file.getvalue().encode(), name="a.csv")) == [Instruction(**row)]


def test_sources_that_are_too_large(write, monkeypatch):
    """A file of a few bytes may hold much; a cell of a dictionary stands in every row."""
    text = pyarrow.array(["y" * 10_000])
    cells = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 2000), text)
    table = pyarrow.table({"instruction": ["x"] * 2000, "output": cells})
    pyarrow.parquet.write_table(table, "a.parquet", compression="zstd")
    write(data=gzip.compress(b" " * 20_000_000), name="b.jsonl.gz")
    pyarrow.parquet.write_table(pyarrow.table({"output": ["x"] * 300_000}), "c.parquet")
    monkeypatch.setattr("fgrlhf_jax.data.tables.SOURCE_BYTES", 10_000_000)
    for name in ("a.parquet", "b.jsonl.gz", "c.parquet"):
        with pytest.raises(InputError, match=f"^{name}: holds more than 0.01 GB of text; give a"):
            next(read_rows(name))  # before any row


def test_several_sources_in_order(write):
    for name, row in (("a", EDIT), ("b, c", PREFERENCE), ("d", INSTRUCTION)):
        write(row, name=f"{name}.jsonl")
    assert [type(record) for record in read("d.jsonl, a.jsonl")] == [Instruction, Edit]
    assert len(read("b, c.jsonl")) == 1  # a comma in the name of a file


def test_what_is_written_is_read(tmp_path):
    records = [
        Edit("Übe.", "a\nb", "漢字 \u2028", 'quote " \\', "x/1", ((0, 2), (1, 3))),
        Preference("Name.", "", "one", "two", 2, "p"),
        Instruction("Name.", "", ""),
    ]
    write_jsonl(tmp_path / "new/folder/a.jsonl", records)
    assert read(str(tmp_path / "new/folder/a.jsonl")) == records


def test_what_json_cannot_say_is_written_as_text(write):
    """A field of a Parquet file that a row keeps; Python has no year 100,000."""
    when = pyarrow.array([2**62], pyarrow.timestamp("us"))
    table = pyarrow.Table.from_pylist([EDIT | {"raw": b"x"}]).append_column("when", when)
    pyarrow.parquet.write_table(table, path := "a.parquet")
    ((record, row),) = read_with_rows(path)
    write_jsonl("a.jsonl", [row | {"rewards": [0.5]}])
    ((again, written),) = read_with_rows("a.jsonl")
    assert again == record
    assert "out of range" in written.pop("when")
    assert written == EDIT | {"raw": "b'x'", "rewards": [0.5]}


def test_a_row_that_lost_its_prompt_gets_none_from_its_texts(write):
    lost = {"chosen": "One fruit is figs.", "rejected": "One fruit is mud."}
    assert read(write(data=lines(lost, lost)))[1].instruction == "One fruit is"
    name, refused = write(data=lines({"prompt": "Name a fruit."} | lost, lost)), []
    with pytest.raises(InputError, match=":2: has no prompt, but other rows have; give"):
        read(name)
    assert [row.instruction for row in read(name, refused=refused)] == ["Name a fruit."]
    assert len(refused) == 1


def test_whether_a_response_ended_travels_with_its_record():
    edit = EDIT | {"original": "It rains and", "edited": "It snows and", "finished": False}
    row = formats.parse_record(edit, "a:1")
    assert not row.finished
    assert not records.is_finished(row, "edited")
    mended = formats.parse_record(edit | {"edited": "It snows."}, "a:1")
    assert records.is_finished(mended, "edited")
    assert not records.is_finished(mended, "original")
    assert records.better_response(row).finished is False
    pair = formats.parse_record(PREFERENCE | {"finished_2": "False", "finished_1": ""}, "a:1")
    assert (pair.finished_1, pair.finished_2) == (True, False)
    assert records.is_finished(pair, "output_1")
    assert not records.is_finished(pair, "output_2")
    assert formats.parse_record(INSTRUCTION | {"finished": None}, "a:1").finished
    for reason in (
        {"stop_reason": "MAX_TOKENS"},
        {"finishReason": "SAFETY"},
        {"finish_reason": "abort"},
        {"truncated": "True"},
    ):
        assert not formats.parse_record(INSTRUCTION | reason, "a:1").finished
    with pytest.raises(InputError, match="a:1: finished is 'perhaps'; it must be true or false"):
        formats.parse_record(INSTRUCTION | {"finished": "perhaps"}, "a:1")


def test_columns_say_which_field_is_the_id_of_a_row(write):
    """Also of a single response, and of a pair whose field id is no id."""
    path = write({"uid": "7", "id": "9", "prompt": "a", "completion": "b"})
    ((_, row),) = read_with_rows(path, columns="id=uid")
    assert row == {"uid": "7", "id": "7", "prompt": "a", "completion": "b"}
    turns = [{"role": "user", "content": "a"}]
    path = write({"id": turns, "output_1": "b", "output_2": "c", "preference": 1})
    ((pair, row),) = read_with_rows(path, columns="messages=id")
    assert (pair.id, row.get("id")) == ("", None)
