"""What the warehouse file is, and which of its names look like one that it does not have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from etl.plumbing import queries
from etl.warehouse import file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from etl.settings import Settings


@dataclass(frozen=True)
class Survey:
    """The file as a whole."""

    storage: str  # the version of DuckDB that can read it, such as v1.0.0+
    tables: int  # and views
    warning: str | None  # what lies beside the file


def survey(settings: Settings, spill: Path) -> Survey:
    """Open the warehouse and say what it is; `spill` is a folder that is there.

    Raises:
        SyncError: as `open_mart`, of the file.
    """
    path = Path(settings.duckdb_path)
    logs = [str(log) for log in file.logs_beside(path)]
    with file.open_warehouse(path, spill, settings.warehouse_wait) as connection:
        ((storage, tables),) = connection.execute(queries.load("warehouse", "survey")).fetchall()
    warning = f"{', '.join(logs)}: {file.LOG_MEANS}" if logs else None
    return Survey(storage, tables, warning)


def lookalikes(
    settings: Settings, spill: Path, tables: Sequence[str], columns: Sequence[str]
) -> tuple[bool, list[str]]:
    """Return what looks most like a table or a column: `schema.table`, `schema.table.column`.

    Where nothing does, False, and of tables that were looked for the nearest that are there.

    Args:
        settings: the warehouse file.
        spill: a folder that is there.
        tables: names of tables or views that are not there.
        columns: names of columns that are not there.
    """
    path = Path(settings.duckdb_path)
    with file.open_warehouse(path, spill, settings.warehouse_wait) as connection:
        sql = queries.load("warehouse", "lookalikes")
        found = connection.execute(sql, [[*tables], [*columns]]).fetchall()
    alike = [name for name, is_alike in found if is_alike]
    return bool(alike), alike or [name for name, _ in found]
