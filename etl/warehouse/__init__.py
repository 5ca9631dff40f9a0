"""The DuckDB warehouse: read a mart key by key, spool it, compare it with a target."""

from etl.warehouse import keys
from etl.warehouse.compare import differing, joined, missing
from etl.warehouse.errors import NotFoundError
from etl.warehouse.marts import Source
from etl.warehouse.spool import Batches, Spool, Writer, split, to_batches, write
from etl.warehouse.stream import Mart, Stats, open_mart, read
from etl.warehouse.survey import Survey, lookalikes, survey

__all__ = [
    "Batches",
    "Mart",
    "NotFoundError",
    "Source",
    "Spool",
    "Stats",
    "Survey",
    "Writer",
    "differing",
    "joined",
    "keys",
    "lookalikes",
    "missing",
    "open_mart",
    "read",
    "split",
    "survey",
    "to_batches",
    "write",
]
