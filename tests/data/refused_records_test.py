"""Every fault of a file is one sentence that names the file and the line."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from record_cases import EDIT, INSTRUCTION, PREFERENCE, changed, lines

from fgrlhf_jax.data.sources import read
from fgrlhf_jax.errors import InputError

BAD_LINES = [
    (b'{"instruction": "a",}', "malformed JSON"),
    (b'{"instruction": "a', "malformed JSON"),
    (lines(EDIT).strip() * 2, "malformed JSON"),
    (b"[" * 100_000, "cannot be read|malformed"),
    (b'{"instruction": ' + b"1" * 5000 + b"}", "cannot be read"),
    (b'{"instruction": "a", "output": "b", "output": "c"}', "has the field 'output' twice"),
    (b'{"messages": [{"role": "}", "content": "a", "role": "user"}]}', "'role' twice"),
    (
        b'{"messages": "[{\\"role\\": \\"user\\", \\"role\\": \\"user\\"}]"}',
        "is not a list of mess",
    ),
    (b"[1, 2]", "is not an object"),
    (b'"text"', "is not an object"),
    (b"null", "is not an object"),
    (lines(EDIT).strip().replace(b"rains", b"r\xe9gne"), "invalid UTF-8 .byte 0xe9.; save the"),
    (b"{}", "misses the field 'instruction'"),
    (b'{"question": "a", "answer": "b"}', "has question, answer"),
]
BAD_FIELDS = [
    *(
        (row, name, ..., f"misses the field '{name}'")
        for row in (EDIT, INSTRUCTION, PREFERENCE)
        for name in row
        if name != "input"
    ),
    (EDIT, "edited", "\ud83d", "invalid Unicode"),
    (EDIT, "edited", 5, "'edited' is 5, not a string"),
    (EDIT, "original", None, "'original' is null, not a str"),
    (INSTRUCTION, "output", ["a"], "output: .* is not a message with a role"),
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
        for value in (0, 3, 1.5, "3", True, None, float("nan"))
    ),
    (EDIT, "error_spans", "It", "error_spans is 'It', not a list of spans"),
    *(
        (EDIT, "error_spans", [span], "error_spans holds .* offsets into the original .0 to 9")
        for span in ([0, 10], {"start": 3, "end": 1}, "It", {"start": 3}, [False, 3], [0, 1, 2])
    ),
]
BAD_LINES += [(lines(changed(row, **{name: x})), says) for row, name, x, says in BAD_FIELDS]


@pytest.mark.parametrize(("data", "message"), BAD_LINES, ids=[m for _, m in BAD_LINES])
def test_bad_line_is_named(write, data, message):
    path = write(data=lines(EDIT) + b"\n" + data.strip() + b"\n" + lines(EDIT))
    no_prompts = "misses the field 'output'" in message  # which a prompt may
    for prompts in {False, not no_prompts}:
        with pytest.raises(InputError, match=f"^a.jsonl:3: .*({message})") as caught:
            read(path, need="prompts" if prompts else "any")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 360


def test_bad_row_of_a_list_or_table_is_named(write):
    rows = [EDIT, EDIT, changed(EDIT, edited=None)]
    write(data=json.dumps(rows).encode(), name="a.json")
    for name in ("a.json", write(*rows, name="a.parquet")):
        with pytest.raises(InputError, match=rf"{name}:row 3: the field 'edited' is null"):
            read(name)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.parquet", lines(EDIT), "a.parquet: is not a readable Parquet file"),
        ("a.json", b'\n[{"a": 1},\n {"a" 2}]\n', "a.json:3: malformed JSON .*column 7"),
        ("a.json", b'[{"a": "x"},\n{"a": "\xff"}]', "a.json:2: invalid UTF-8"),
        (
            "a.json",
            b'[{"a": "}\\"{"},\n{"b": 1,\n"b": {}}, {}]',
            "a.json:3: an object has the field 'b'",
        ),
        (
            "a.csv",
            b'prompt,output\n"[{""role"": ""user"", ""role"": ""user"", ""content"": 1}]",b\n',
            "a.csv:2: a message has the field 'role' twice",
        ),
        *(
            ("a.json", data, "a.json: holds no rows")
            for data in (b"", b"\n \n", b"\xef\xbb\xbf", b"[]")
        ),
        ("a.txt", b"instruction,output\n", "a.txt: is none of .jsonl, .json, .csv, .parquet"),
    ],
)
def test_a_file_that_cannot_be_read(write, name, data, message):
    with pytest.raises(InputError, match=f"^{message}"):
        read(write(data=data, name=name))
    write(EDIT, name="good.jsonl")
    with pytest.raises(InputError, match=f"^{message}"):
        read(f"good.jsonl,{name}")


def test_a_text_of_parquet_that_is_no_utf8(write):
    texts = pyarrow.array([b"caf\xe9"]).cast(pyarrow.string(), safe=False)
    pyarrow.parquet.write_table(pyarrow.table({"instruction": texts, "output": ["a"]}), "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: .*UTF-8"):
        read("a.parquet")


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


def test_no_file_folder_and_unreadable_file(write, monkeypatch):
    path = write(EDIT)
    with pytest.raises(InputError, match=r"a\.jsonl,': has an empty name"):
        read(f"{path},")
    with pytest.raises(InputError, match="is a folder; name the files in it"):
        read(".")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    # By hand, since permissions do not bind root.
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(InputError, match=r"a\.jsonl: cannot be read \(Permission denied\)"):
        read(path)
