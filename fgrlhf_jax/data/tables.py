"""Reads rows of tables: CSV, Parquet, and datasets of the `datasets` library."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fgrlhf_jax.data import hub_datasets
from fgrlhf_jax.data.row_fields import ROW_BYTES
from fgrlhf_jax.errors import InputError

SOURCE_BYTES = 2 * 10**9
MIN_ROW_BYTES = 50  # as JSON; a constant column takes no bytes in Parquet
MIN_BATCH_ROWS, MAX_BATCH_ROWS = 16, 4096  # few, since a cell may be large
BATCH_BYTES = 10**8  # of a batch, unless BATCH_ROWS have more

Rows = Iterator[tuple[str, Any]]


def check_size(source: str, size: int) -> None:
    """Raises InputError for a source above ``SOURCE_BYTES``."""
    if size > SOURCE_BYTES:
        reason = f"holds more than {SOURCE_BYTES / 1e9:g} GB of text"
        raise InputError(f"{source:.300}: {reason}; give a part of it")


def invalid_utf8(error: UnicodeDecodeError, source: str, line: int) -> InputError:
    """The error for invalid UTF-8; ``line`` is the number of the first line."""
    line += error.object.count(b"\n", 0, error.start)
    byte = error.object[error.start]
    return InputError(f"{source}:{line}: invalid UTF-8 (byte 0x{byte:02x}); save the file as UTF-8")


def csv_rows(data: bytes, source: str) -> Rows:
    """Yields rows of CSV, whose first line has the column names."""
    csv.field_size_limit(ROW_BYTES)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise invalid_utf8(error, source, 1) from error
    header = text.partition("\n")[0]  # names have no comma, semicolon or tab
    delimiter = next((sign for sign in ",;\t" if sign in header), ",")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    names: list[str] = []
    try:
        for cells in reader:
            where = f"{source}:{reader.line_num}"
            if not names:
                names = [*map(str.strip, cells)]
                if duplicates := [name for name in names if name and names.count(name) > 1]:
                    reason = f"{duplicates[0]!r:.60} names two columns"
                    raise InputError(f"{where}: {reason}; rename one")
            elif cells == names:  # of two files in one
                yield where, InputError(f"{where}: repeats the names of the columns; take it out")
            elif len(cells) == len(names):
                yield where, dict(zip(names, cells, strict=True))
            elif cells:
                reason = f"has {len(cells)} cells, the first line {len(names)} names"
                yield where, InputError(f"{where}: {reason}; correct this line")
    except csv.Error as error:
        reason = f"malformed CSV ({error}); correct this line"
        raise InputError(f"{source}:{reader.line_num}: {reason}") from error


def dataset_rows(source: str) -> Rows:
    """Rows of a dataset, see ``hub_datasets``."""
    table = hub_datasets.load(source).data
    return _arrow_rows(source, lambda: table.to_batches(MIN_BATCH_ROWS))


def parquet_rows(source: str) -> Rows:
    """Rows of a Parquet file."""
    import pyarrow.parquet

    def batches() -> Iterator:
        file = pyarrow.parquet.ParquetFile(source)
        groups = range(file.metadata.num_row_groups)
        sizes = [file.metadata.row_group(n).total_byte_size for n in groups]  # as encoded
        check_size(source, max(sum(sizes), MIN_ROW_BYTES * file.metadata.num_rows))
        count = BATCH_BYTES // max([1, *sizes])  # a row has at most the bytes of its group
        return file.iter_batches(batch_size=min(max(count, MIN_BATCH_ROWS), MAX_BATCH_ROWS))

    return _arrow_rows(source, batches)


def _arrow_rows(source: str, batches: Callable[[], Iterable]) -> Rows:
    """Yields rows of Arrow batches after a first pass that checks the total size."""
    import pyarrow

    def plain_batches() -> Iterator:
        for batch in batches():
            columns = [_plain(column) for column in batch.columns]
            yield pyarrow.RecordBatch.from_arrays(columns, batch.schema.names)

    count = size = 0
    try:
        for batch in plain_batches():
            size += batch.nbytes
            check_size(source, size)
            count += batch.num_rows
        rows = (row for batch in plain_batches() for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield f"{source}:row {number}", row
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: a text is invalid UTF-8; write UTF-8 strings") from error
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = f"is not a readable Parquet file ({error})"
        if count:
            reason = f"rows after row {count} cannot be read ({error})"
        raise InputError(f"{source}: {reason:.300}; write it again") from error


def _plain(column: Any) -> Any:
    """Converts a column to plain values: decodes dictionaries, formats dates and times as text."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        return _plain(column.dictionary_decode())
    return column.cast(pyarrow.string()) if pyarrow.types.is_temporal(column.type) else column
