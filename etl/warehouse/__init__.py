"""The DuckDB warehouse: read a mart as a sorted stream, spool it, compare it with a target."""

from etl.warehouse import keys
from etl.warehouse.spool import Batches, Spool, Writer, differing, missing, to_batches, write
from etl.warehouse.stream import Mart, Stats, open_mart, read

__all__ = [
    "Batches",
    "Mart",
    "Spool",
    "Stats",
    "Writer",
    "differing",
    "keys",
    "missing",
    "open_mart",
    "read",
    "to_batches",
    "write",
]
