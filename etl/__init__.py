"""SearchFlow's reverse ETL: dbt marts in DuckDB -> Postgres and Redis."""

import os
import sys

__version__ = "0.1.0"

# Polars keeps memory that it has freed for ten seconds, which is longer than most of its work
# here: what it needed for one part of a mart is to be there for others. Must be said before it
# is imported.
os.environ.setdefault("_RJEM_MALLOC_CONF", "dirty_decay_ms:10,muzzy_decay_ms:0")

# `python -m etl...` is starting: answer signals before the heavy imports, not after them.
if sys.argv[:1] == ["-m"] and " -m etl" in " ".join(sys.orig_argv):
    from etl import signals

    signals.end_at_once()
