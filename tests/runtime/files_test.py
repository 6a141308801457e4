"""Atomic writes, JSONL files that grow by whole lines, and locks, also where the disk is full."""

import contextlib
import errno
import os
import subprocess

import pytest

from fgrlhf_jax.errors import InputError
from fgrlhf_jax.runtime import files


def full_disk(room: int):
    """``os.pwrite`` on a disk with room for so many bytes, which takes seven at a time."""
    real = os.pwrite

    def pwrite(file, data, offset):
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = real(file, data[: min(room, 7)], offset)
        room -= count
        return count

    return pwrite


@pytest.mark.parametrize("durable", [True, False])
def test_a_line_is_written_whole_or_not_at_all(tmp_path, monkeypatch, durable):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"torn')
    assert files.read_jsonl(path) == [{"a": 1}]
    with contextlib.closing(files.JsonlFile(path, durable=durable)) as file:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full_disk(10))
            with pytest.raises(OSError, match="No space left"):
                file.append(b"0123456789abcdef\n")
        assert path.read_bytes() == b'{"a": 1}\n'
        monkeypatch.setattr(os, "pwrite", full_disk(100))
        file.append(b"0123456789abcdef\n")
        assert path.read_bytes() == b'{"a": 1}\n0123456789abcdef\n'


def test_an_atomic_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "new" / "value.json"
    files.write_json(path, {"ü": "half a pair: \ud83d"})

    def fsync(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(InputError, match=r"value.json: cannot be written \(No space .*; free some"):
        files.write_json(path, {})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_lines_are_split_at_newlines_only(tmp_path):
    rows = [{"text": "a\u2028b\x85c\r"}, {"text": "half a pair: \ud83d"}]
    files.write_jsonl(tmp_path / "rows.jsonl", rows)
    assert files.read_jsonl(tmp_path / "rows.jsonl") == rows
    assert files.read_jsonl(tmp_path / "nothing.jsonl") == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "is empty"),
        ('{"command": ["a', "is damaged or cut short"),
        ("[" * 99_999, "is damaged or cut short"),
        ("[]", "is damaged: the content is not a dict"),
        ('{"command": ["a", 1], "seconds": 1}', "is damaged: command is not a str"),
        ('{"command": []}', "is damaged: seconds is not a float"),
        (None, "is missing"),
    ],
)
def test_a_file_of_ours_that_is_damaged(tmp_path, text, fault):
    path, like = tmp_path / "marker.json", {"command": [""], "seconds": 0.0}
    if text is not None:
        path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(InputError) as error:
        files.read_json(path, like, "delete it")
    assert str(error.value) == f"{path}: {fault}; delete it"
    files.write_json(path, {"command": ["a"], "seconds": 1, "more": None})
    assert files.read_json(path, like, "delete it")["seconds"] == 1


@pytest.mark.parametrize("row", [b'{"a" 2}', b"[" * 99_999])
def test_a_damaged_row_is_named(tmp_path, row):
    """Only a last line without its end, torn by a kill, may go."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + row + b'\n{"a": 3}\n')
    with pytest.raises(InputError, match=r"rows.jsonl:2: this row is damaged"):
        files.read_jsonl(path)


def test_what_a_kill_leaves_goes_with_the_next_write(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    running = tmp_path / f".b.json.{os.getppid()}.partial"
    for path in (tmp_path / f".a.json.{ended.pid}.partial", running, tmp_path / ".mine.partial"):
        path.touch()
    files.write_json(tmp_path / "b.json", 1)
    left = {".mine.partial", running.name, "b.json"}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_a_lock_is_of_one_at_a_time(tmp_path):
    path = tmp_path / "lock"
    lock = files.Lock(path)
    with pytest.raises(BlockingIOError):
        files.Lock(path)
    assert lock.valid
    lock.close()
    assert not path.exists()
    files.Lock(path).close()
    with pytest.raises(FileNotFoundError):
        files.Lock(tmp_path / "nowhere" / "lock")
    (tmp_path / "mine").write_text("mine")
    path.symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="the lock file is a link; remove it"):
        files.Lock(path)
    assert (tmp_path / "mine").read_text() == "mine"
