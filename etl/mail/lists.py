"""`--decisions FILE`: a list of what would become of each mail, for a spreadsheet or a notebook."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from etl.errors import SyncError
from etl.mail import decisions
from etl.plumbing import files

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

    The file is there once it is complete, for its owner alone: it tells of people.

    Raises:
        SyncError: the file cannot be written.
    """
    if name is None:
        yield lambda _: None
        return
    with ExitStack() as file:
        with _explaining(name):
            sink = file.enter_context(files.replacing(name, 0o600))
            writer = _writer(Path(name).suffix, sink)

        def write(decided: pl.DataFrame) -> None:
            rows = decisions.to_tell(decided).sort("user_id")
            with _explaining(name):
                writer.write_table(rows.to_arrow().select(_SCHEMA.names).cast(_SCHEMA))

        yield write
        with _explaining(name):
            writer.close()
            file.close()


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
