"""SearchFlow's reverse ETL: dbt marts in DuckDB -> Postgres and Redis."""

import sys

__version__ = "0.1.0"

# `python -m etl...` is starting: answer signals before the heavy imports, not after them.
if sys.argv[:1] == ["-m"] and " -m etl" in " ".join(sys.orig_argv):
    from etl import signals

    signals.end_at_once()
