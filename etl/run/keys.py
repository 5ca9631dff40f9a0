"""Write what a run made to Redis, which cannot be rolled back."""

from __future__ import annotations

from collections.abc import Iterable

from etl import cache
from etl.cache import Batch
from etl.run import Run


def write_keys(run: Run, batches: Iterable[Batch], keys: int, ttl: int) -> None:
    """Let the guards look, then write the keys and read back a sample; a dry run compares them.

    Args:
        run: it gets the counts: `written`, or in a dry run inserted, updated and unchanged.
        batches: keys with their values.
        keys: how many there are.
        ttl: seconds after which a key expires that no run renews.

    Raises:
        Refused: a guard fired; no key was sent.
        SyncError: not every key was written.
    """
    run.tally.expect_keys(keys, ttl, run.previous)
    run.check_guards()
    with cache.connect(run.settings) as client:
        if not run.options.dry_run:
            run.count({"written": 0})
        cache.require_writable(client, run.settings)
        if run.options.dry_run:
            run.count(cache.compare(client, batches, run.settings))
            return
        sample: list[str] = []
        batches = cache.sampled(batches, keys, cache.SAMPLE_KEYS, sample)
        for written in cache.write(client, batches, keys, ttl, run.settings):
            run.count({"written": written})
        cache.read_back(client, sample, run.settings)
