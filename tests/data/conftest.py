"""Tokenizers of both kinds that checkpoints have, and files of rows."""

import pyarrow
import pyarrow.parquet
import pytest
from data_cases import TEXTS
from record_cases import lines
from tokenizers.processors import ByteLevel
from transformers import AutoTokenizer

from fgrlhf_jax.data.tokenizers import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    """As LLaMA's: puts a BOS first, has no pad token."""
    return train_tokenizer(TEXTS * 3, 500)


@pytest.fixture
def smol(tokenizer, tmp_path):
    """As SmolLM2's: a BOS is defined but not put first, its pad token is its EOS."""
    tokenizer.save_pretrained(tmp_path)
    smol = AutoTokenizer.from_pretrained(tmp_path, pad_token="</s>")
    smol.backend_tokenizer.post_processor = ByteLevel(trim_offsets=True)
    assert smol.pad_token_id == smol.eos_token_id == 2
    return smol


@pytest.fixture(params=["tokenizer", "smol"])
def either(request):
    """Each of the two."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file of rows, or of bytes, here, and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(*rows: dict, data: bytes | None = None, name: str = "a.jsonl") -> str:
        if data is not None:
            (tmp_path / name).write_bytes(data)
        elif name.endswith(".parquet"):
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), tmp_path / name)
        else:
            (tmp_path / name).write_bytes(lines(*rows))
        return name

    return write
