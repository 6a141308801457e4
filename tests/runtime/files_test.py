"""Atomic writes, JSONL files that grow by whole lines, and locks, also where the disk is full."""

import contextlib
import errno
import os

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
    with pytest.raises(InputError, match=r"value.json: cannot be written \(No space left"):
        files.write_json(path, {})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_lines_are_split_at_newlines_only(tmp_path):
    rows = [{"text": "a\u2028b\x85c\r"}, {"text": "half a pair: \ud83d"}]
    files.write_jsonl(tmp_path / "rows.jsonl", rows)
    assert files.read_jsonl(tmp_path / "rows.jsonl") == rows
    assert files.read_jsonl(tmp_path / "nothing.jsonl") == []


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
