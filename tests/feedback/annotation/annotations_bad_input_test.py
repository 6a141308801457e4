"""Files of annotations that somebody changed, damaged or began with another input are refused."""

from pathlib import Path

import pytest
from annotations_cases import IMPORTED, items

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.feedback.annotation import log as annotation_log
from fgrlhf_jax.feedback.annotation.history import Item, saved
from fgrlhf_jax.feedback.annotation.store import Annotations


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "edits.jsonl"


def refused(match: str, output, rows=None, **options) -> None:
    before = {path: path.read_bytes() for path in output.parent.iterdir()}
    with pytest.raises(InputError, match=match):
        Annotations(rows or items(2), output, **options)
    assert {path: path.read_bytes() for path in output.parent.iterdir()} == before


@pytest.fixture
def begun(output) -> Path:
    with Annotations(items(2), output) as store:
        store.accept("Ann", store.take("Ann").id, "Zero.")
        store.accept("Ann", store.take("Ann").id, "One.")
    return output


def test_another_input_is_refused(begun):
    changed = [*items(1), Item("r1", "Say 1.", "", "This is number one.")]
    for rows in (items(1), items(3), items(2)[::-1], changed):
        refused("the input has changed since", begun, rows)
        with pytest.raises(InputError, match="the input has changed"):
            saved(rows, begun)
    refused("the input has changed since", begun, imported=IMPORTED[:1])


def test_edits_changed_by_somebody_else_are_refused(begun):
    text = begun.read_text()
    begun.write_text(text.replace("Zero", "Nil"))
    refused("holds other edits than edits.jsonl.state.jsonl tells of", begun)
    begun.write_text(text + text)
    refused("holds other edits", begun)
    begun.unlink()
    Annotations(items(2), begun).close()
    assert begun.read_text() == text


def test_edits_changed_while_they_are_made_are_not_overwritten(begun):
    with Annotations(items(2), begun) as store:
        store.undo("Ann")
        begun.write_text(begun.read_text() + "mine\n")
        with pytest.raises(InputError, match="another program has changed it"):
            store.accept("Ann", "r1", "Two.")
        assert begun.read_text().endswith("mine\n")


def test_a_file_that_is_not_of_annotations_is_refused(output):
    output.write_text('{"some": "rows"}\n')
    with pytest.raises(InputError, match="choose another output"):
        Annotations(items(2), output)
    assert output.read_text() == '{"some": "rows"}\n'


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda head, *rest: [b"{}", *rest], "is not of this version"),
        (lambda head, *rest: [head.replace(b"version 1", b"version 0"), *rest], "version 1"),
        (lambda head, *rest: [head, b"{", *rest], "is damaged"),
        (lambda head, *rest: [head, b"3", *rest], "event 1 of the annotations makes no sense"),
        (lambda head, first, *rest: [head, *rest, b'{"event": "fine"}'], "makes no sense"),
        (lambda head, *rest: [head, rest[0].replace(b"open", b"undo"), *rest], "no sense"),
        (lambda head, *rest: [head, rest[0].replace(b"open", b"lost"), *rest], "no sense"),
    ],
)
def test_a_damaged_log_is_refused(begun, damage, message):
    path = annotation_log.state_path(begun)
    path.write_bytes(b"\n".join(damage(*path.read_bytes().splitlines())) + b"\n")
    refused(message, begun)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        Annotations(items(1), tmp_path / "file" / "edits.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(InputError, match=r"folder.jsonl.*cannot be"):
        Annotations(items(1), tmp_path / "folder.jsonl")
