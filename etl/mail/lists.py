"""`--decisions FILE`: a list of what would become of each mail, for a spreadsheet or a notebook."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from etl.errors import SyncError
from etl.mail import decisions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import polars as pl

_SCHEMA = pa.schema(
    {
        "user_id": pa.string(),
        "template": pa.string(),
        "outcome": pa.string(),
        "until": pa.timestamp("us", "UTC"),
        "episode_at": pa.timestamp("us", "UTC"),
        "priority": pa.int16(),
        "payload": pa.string(),
    }
)


@contextmanager
def writing(name: str | None) -> Iterator[Callable[[pl.DataFrame], None]]:
    """Hand out what writes decided rows to a file; without a name they go nowhere.

    The file is there once it is complete, for its owner alone: it tells of people. Until then the
    rows are in one beside it.

    Raises:
        SyncError: the file cannot be written.
    """
    if name is None:
        yield lambda _: None
        return
    path = Path(name)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with _explaining(name):
            sink = open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")  # noqa: SIM115
        with sink:
            with _explaining(name):
                writer = _writer(path.suffix, sink)

            def write(decided: pl.DataFrame) -> None:
                rows = decisions.to_tell(decided).sort("user_id")
                with _explaining(name):
                    writer.write_table(rows.to_arrow().select(_SCHEMA.names).cast(_SCHEMA))

            yield write
            with _explaining(name):
                writer.close()
        with _explaining(name):
            partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def _explaining(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SyncError(f"--decisions {name}: {error.strerror or error}") from error


def _writer(suffix: str, sink: Any) -> Any:
    # Imported here, because a run without a list needs neither.
    if suffix.lower() == ".csv":
        from pyarrow import csv

        return csv.CSVWriter(sink, _SCHEMA)
    from pyarrow import parquet

    return parquet.ParquetWriter(sink, _SCHEMA)
