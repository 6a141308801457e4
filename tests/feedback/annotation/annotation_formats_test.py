"""Rows of other tools, read and written with the field names of those tools."""

import json
import re
import uuid
from pathlib import Path

import pytest

from fgrlhf_jax.data import sources
from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation import exports, formats
from fgrlhf_jax.feedback.annotation.items import EDITED, FINE, SKIPPED, Decision, Item

ITEMS = [
    Item("a", "Where is Paris?", "", "In Germany, <b>I</b> think.", "In France, I think."),
    Item("b", "And Rome?", "Context.", "In Italy.\r\n"),
    Item("c", "And Oslo?", "", "In Sweden 😀.", finished=False),
    Item("d", "", "", "Here.", turns=(("system", "Be brief."), ("user", "And Bern?"))),
]
DETAILS = {"seconds": 12.5, "tags": ("a, b", "é"), "comment": "Why?", "over_limit": True}
DECISIONS = [
    Decision("a", "Ann", EDITED, "In France.", **DETAILS),
    Decision("a", "bob@example.org", EDITED, "In Europe."),
    Decision("b", "Ann", FINE, "In Italy.\r\n"),
    Decision("c", "Ann", SKIPPED, "In Sweden 😀."),
    Decision("c", "01234567-89ab-cdef-0123-456789abcdef", EDITED, "In Norway 😀."),
]


def read(rows, name: str = "rows.json", refused=None):
    """The items and decisions in a file with the given rows."""
    Path(name).write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return formats.read(name, refused=refused)


@pytest.mark.parametrize("format", ["argilla", "label_studio"])
@pytest.mark.parametrize("decisions", [DECISIONS, []])
def test_a_round_trip(tmp_path, format, decisions):
    path = tmp_path / "export.json"
    assert formats.write(path, format, ITEMS, decisions) == 4
    assert formats.read(str(path)) == (ITEMS, decisions)
    answer = r'(?<!"response": )"In Italy\.\\r\\n"'  # a browser changes its line end
    path.write_text(re.sub(answer, r'"In Italy.\\n"', path.read_text()))
    assert formats.read(str(path)) == (ITEMS, decisions)


def test_edits_are_written_for_training_and_read_for_a_second_pass(output):
    decisions = [*DECISIONS, Decision("d", "Ann", EDITED, "There.")]
    assert formats.write(output, "edits", ITEMS, decisions) == 4
    edited, rows = zip(*sources.read_with_rows(str(output)), strict=True)
    texts = ["In France.", "In Europe.", "In Norway 😀.", "There."]
    assert [record.edited for record in edited] == texts
    names = ["id", "instruction", "input", "original", "edited", "annotator"]
    assert [list(row) for row in rows[:2]] == [[*names, *DETAILS], names]
    items, decisions = formats.read(str(output))
    others = (("Ann", "In France."), ("bob@example.org", "In Europe."))
    assert ([item.id for item in items], decisions) == (["a", "c", "d"], [])
    a, _, d = items
    assert (a.suggestion, a.others) == ("In France.", others)
    assert (d.turns, d.original, d.suggestion) == (ITEMS[3].turns, "Here.", "There.")
    with pytest.raises(InputError, match="row 3: has the id of row 1"):
        read([row | {"id": "a"} for row in rows])


# As `dataset.records.to_json` of Argilla 2 writes it.
EDITOR, READER = (f"{digit * 8}-2222-3333-4444-555555555555" for digit in "19")
ANSWERS = [{"value": "In France!", "user_id": EDITOR}, {"value": "In Germany.", "user_id": READER}]


def argilla(*answers: dict, **fields) -> dict:
    row = {"id": "a", "fields": {"prompt": "Where is Paris?", "response": "In Germany."}}
    row |= {"suggestions": {"better": {"value": "In France.", "score": 0.9, "agent": "gpt"}}}
    row |= {"responses": {"better": [*answers]}, "metadata": {"source": "web"}, "vectors": {}}
    return row | {"_server_id": "12345678-2222-3333-4444-555555555555"} | fields


ARGILLA = argilla(*ANSWERS)

# As Label Studio exports it as "JSON".
TEXT_AREA = {"id": "qd1jIVAq1h", "type": "textarea", "origin": "manual"}
TEXT_AREA |= {"to_name": "response", "from_name": "answer", "value": {"text": ["In France!"]}}
ANN = {"id": 3, "email": "ann@example.org", "first_name": "Ann"}
ANNOTATION = {"id": 22, "completed_by": ANN, "result": [TEXT_AREA], "was_cancelled": False}
ANNOTATION |= {"ground_truth": False, "lead_time": 8.65, "task": 87}
CANCELLED = {"id": 23, "completed_by": 4, "result": [], "was_cancelled": True}
EMPTY = {"id": 24, "completed_by": 5, "result": [], "was_cancelled": False}
PREDICTION = {"model_version": "gpt", "result": [TEXT_AREA | {"value": {"text": ["In France."]}}]}
LABEL_STUDIO = {"id": 87, "data": {"instruction": "Where is Paris?", "response": "In Germany."}}
LABEL_STUDIO |= {"annotations": [ANNOTATION, CANCELLED, EMPTY], "predictions": [PREDICTION]}
LABEL_STUDIO |= {"drafts": [], "meta": {}, "project": 29}


def test_an_export_of_argilla():
    item = Item("a", "Where is Paris?", "", "In Germany.", "In France.")
    edit = Decision("a", EDITOR, EDITED, "In France!")
    assert read([ARGILLA]) == ([item], [edit, Decision("a", READER, FINE, "In Germany.")])
    first, second = ANSWERS
    answers = [first | {"status": "draft"}, second | {"status": "discarded"}]
    nested = read([argilla(*answers)])
    assert [decision.verdict for decision in nested[1]] == [SKIPPED]
    assert read([argilla(first, second | {"status": None})]) == read([ARGILLA])
    flat = ARGILLA["fields"] | {"id": "a", "annotators": None, "better.suggestion": "In France."}
    for name, key in (("", "value"), (".users", "user_id"), (".status", "status")):
        flat[f"better.responses{name}"] = [answer[key] for answer in answers]
    assert read(json.dumps(flat), "rows.jsonl") == nested
    turns = [{"role": "user", "content": "Where?"}]
    chat = read(json.dumps(flat | {"prompt": None, "instruction": turns}), "chat.jsonl")[0]
    assert chat == [Item("a", "", "", "In Germany.", "In France.", (("user", "Where?"),))]
    assert read([argilla(first | {"user_id": None})])[1][0].annotator == "argilla"


def test_an_export_of_label_studio():
    item = Item("87", "Where is Paris?", "", "In Germany.", "In France.")
    edit = Decision("87", "ann@example.org", EDITED, "In France!", seconds=8.65)
    assert read([LABEL_STUDIO]) == ([item], [edit, Decision("87", "4", SKIPPED, "In Germany.")])


def test_our_rows_exported_by_label_studio():
    """It adds numbers, replaces predictions by numbers, and may drop meta."""
    row = exports.label_studio_row(ITEMS[0], DECISIONS[:2])
    row |= {"id": 12, "predictions": [286], "drafts": [], "meta": {}, "project": 3}
    for number, annotation in enumerate(row["annotations"]):
        annotation |= {"id": 40 + number, "completed_by": 1, "lead_time": 12.5, "task": 12}
        annotation["result"][0] |= {"id": "x", "origin": "manual"}
    item = Item("a", "Where is Paris?", "", "In Germany, <b>I</b> think.")
    second = Decision("a", "bob@example.org", EDITED, "In Europe.", seconds=12.5)
    assert read([row]) == ([item], [DECISIONS[0], second])
    for annotation in row["annotations"]:
        del annotation["result"][0]["meta"]
    assert [decision.annotator for decision in read([row])[1]] == ["1", "1 #41"]


def test_unreadable_rows_are_left_out_and_reported():
    odd = [LABEL_STUDIO | {"annotations": [7]}, {"data": {"instruction": "x"}}, 3, LABEL_STUDIO]
    items, decisions = read([LABEL_STUDIO, *odd], refused=(refused := []))
    assert ([item.id for item in items], len(decisions)) == (["87"], 2)
    places = [message.split(": ")[0].rpartition(":")[2] for message in refused]
    assert places == ["row 2", "row 3", "row 4", "row 5"]
    items, _ = read([PLAIN, {"output": 3}, PLAIN | {"id": 7}], refused=(refused := []))
    assert ([item.id for item in items], len(refused)) == (["1", "7"], 1)
    with pytest.raises(InputError, match=r"no row can be read; .*row 1: has no response"):
        read([odd[1]], refused=[])


@pytest.mark.parametrize("value", [5, None, ["In France."]])
def test_a_suggestion_that_is_not_a_text_is_ignored(value):
    rating = {"rating": {"value": value, "score": None, "agent": None}}
    both = argilla(suggestions=rating | ARGILLA["suggestions"])
    assert read([both])[0][0].suggestion == "In France."
    area = TEXT_AREA | {"value": {"text": 5}}
    studio = LABEL_STUDIO | {"predictions": [{"result": [area]}]}
    for row in (argilla(suggestions=rating, responses={}), studio):
        assert read([row])[0][0].suggestion == ""


def test_a_row_for_argilla():
    row = exports.argilla_row(ITEMS[0], DECISIONS[:1])
    (answer,) = row["responses"].pop("edited")
    user = answer.pop("user_id")
    assert (str(uuid.UUID(user)), answer) == (user, {"value": "In France.", "status": "submitted"})
    assert json.loads(*row["metadata"].pop("details"))["comment"] == "Why?"
    suggestion = {"value": "In France, I think.", "score": None, "agent": None}
    fields = {"instruction": "Where is Paris?", "response": ITEMS[0].original}
    more = {"suggestions": {"edited": suggestion}, "responses": {}, "vectors": {}}
    assert row == {"id": "a", "fields": fields, "metadata": {"annotators": ["Ann"]}, **more}


def test_a_row_for_label_studio():
    row = exports.label_studio_row(ITEMS[0], DECISIONS[:2])
    data = {"id": "a", "instruction": "Where is Paris?", "input": ""}
    assert row["data"] == {**data, "response": "In Germany, <b>I</b> think."}
    first, second = row["annotations"]
    names = {"from_name": "edited", "to_name": "response", "type": "textarea"}
    details = json.dumps(DETAILS, ensure_ascii=False)
    texts = {"value": {"text": ["In France."]}, "meta": {"text": ["Ann", details]}}
    assert first["result"] == [names | texts]
    # Label Studio refuses a file that names a user by anything but an address or a number.
    assert "completed_by" not in first
    assert second["completed_by"] == {"email": "bob@example.org"}


def test_our_own_rows():
    rows = [
        {"instruction": "Say one.", "output": "One.", "generator": "m"},
        {"id": 7, "instruction": "Say two.", "input": "x", "output": "Two."},
        {"instruction": "Say three.", "original": "Tree.", "edited": "Three."},
    ]
    items = [Item("1", "Say one.", "", "One."), Item("7", "Say two.", "x", "Two.")]
    items.append(Item("3", "Say three.", "", "Tree.", "Three."))
    assert read(rows) == (items, [])
    assert read("".join(json.dumps(row) + "\n" for row in rows), "rows.jsonl") == (items, [])


def answered(*areas: dict) -> list[dict]:
    return [LABEL_STUDIO | {"annotations": [{"result": areas}]}]


PLAIN = {"instruction": "Say one.", "output": "One."}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([PLAIN, {"prompt": "x", "chosen": "a", "rejected": "b"}], "row 2: is a preference"),
        ([PLAIN | {"id": "x"}, PLAIN | {"id": "x"}], "row 2: has the id of row 1 ('x')"),
        ([PLAIN | {"id": 2}, PLAIN], "row 2: has the id of row 1 ('2')"),
        ([PLAIN, 3], "row 2: is not an object"),
        ("[{", "malformed JSON"),
        ([ARGILLA, 3], "row 2: is not an object"),
        ([ARGILLA, LABEL_STUDIO], "row 2: is not in the form of an export's rows"),
        ([argilla(fields={"response": "x"})],
         "row 1: has no instruction (it has response); name one instruction or prompt"),
        ([argilla(fields={"prompt": "x", "response": 3})], "row 1: has no response"),
        ([argilla(fields={"prompt": "x", "response": "\ud800"})], "invalid Unicode"),
        ([argilla(responses=[{"user_id": "x", "values": {}}])], "is in Argilla 1's format"),
        ([argilla(responses={"one": [], "two": []})], "questions one, two, better; call the one"),
        ([argilla({"value": 3, "user_id": "x"})], "row 1: the answer of x is empty or not a text"),
        ([argilla(*2 * ANSWERS[:1])], "row 1: has two answers of 11111111"),
        ([{"data": {"instruction": "x"}}], "row 1: has no response"),
        (answered({"type": "textarea"}), "row 1: is not in the form"),
        (answered(TEXT_AREA, TEXT_AREA | {"from_name": "x"}), "answers the questions answer, x"),
        (answered(TEXT_AREA | {"value": {"text": [""]}}), "the answer of label_studio is empty"),
        (answered(TEXT_AREA, TEXT_AREA), "row 1: an annotation has 2 answers; leave one of"),
        (answered(TEXT_AREA | {"value": {"text": ["In", "France!"]}}), "has 2 answers; leave one"),
        ([LABEL_STUDIO | {"completions": []}], "row 1: is from Label Studio before 1.0; export it"),
        ([PLAIN | {"annotation_id": 3, "lead_time": 3.1}],
         "row 1: is a row of an Argilla or Label Studio table, whose answers are not read"),
        ([argilla(ANSWERS[0] | {"status": "x"})], "answer has the unknown status 'x'; correct it"),
        (answered(TEXT_AREA | {"meta": {"text": [{"a": 1}]}}), "the answer of {'a': 1} is empty"),
    ],
)  # fmt: skip
def test_refused_rows(rows, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        read(rows)
    assert not re.search("\n|InputError", str(error.value))
    assert str(error.value).endswith("or leave such rows out with invalid=drop") or rows == "[{"


def test_files_that_cannot_be_written():
    for format in formats.FORMATS:
        with pytest.raises(InputError, match="cannot be written"):
            formats.write(Path("/proc/no/such.json"), format, ITEMS, DECISIONS)
