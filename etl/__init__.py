"""SearchFlow's reverse ETL: dbt marts in DuckDB -> Postgres and Redis."""

import gc
import os
import re
import sys

__version__ = "0.2.0"

__all__ = ["cancel"]

# Polars keeps memory that it has freed for ten seconds, which is longer than most of its work
# here: what it needed for one part of a mart is to be there for others. Must be said before it
# is imported.
os.environ.setdefault("_RJEM_MALLOC_CONF", "dirty_decay_ms:10,muzzy_decay_ms:0")

# While `python -m <module>` looks for its module, argv[0] is `-m`, and the name is the last word
# before the module's own (`-m etl`, `-um etl.status`, `-Imetl`). Where the module is one of ours,
# answer signals before the heavy imports, not after them; any other has handlers of its own.
_MODULE = "".join(sys.orig_argv[-len(sys.argv) :][:1]) if sys.argv[:1] == ["-m"] else ""
IS_PROGRAM = re.fullmatch(r"(-[^\Wm]*m)?etl(\.\w+)*", _MODULE) is not None
if IS_PROGRAM:
    # What is imported and what makes a batch is no garbage: looking for it took 8 % of the CPU.
    gc.set_threshold(1_000_000)
    # Batches are too small to be shared out, and a thread that waits for work keeps a core busy for
    # a while: numpy's, which nothing here uses, did so for a tenth of the CPU.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("POLARS_MAX_THREADS", "1")

    from etl.plumbing import signals

    signals.install_exiting()

from etl.plumbing.cancellation import cancel  # noqa: E402  (signals are answered first)
