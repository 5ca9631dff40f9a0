"""Redis: reached, what it is, whether keys may be written, and room for those of the mart."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from etl import cache
from etl.check.findings import FAIL, OK, SKIPPED, WARN, Finding, failed, skipped
from etl.errors import SyncError
from etl.plumbing.counted import counted

if TYPE_CHECKING:
    from etl.cache import Memory
    from etl.check.look import Look
    from etl.settings import Settings

_SERVER, _RIGHTS, MEMORY = "Redis", "Redis rights", "Redis memory"

# An estimate: what it says of a server that is nearly full may be wrong.
_SURE = 1.25


def look(settings: Settings) -> tuple[Memory | None, list[Finding]]:
    """Look at the server or servers.

    Returns:
        The memory, None where Redis cannot be used or does not tell; and the findings.
    """
    try:
        with cache.connect(settings) as client:
            cache.require_writable(client, settings)
            tls = "TLS" if settings.redis_tls else "no TLS"
            found = f"{settings.redis_address}: {cache.kind(client)}, {tls}"
            findings = [Finding(_SERVER, OK, found), _rights(client, settings)]
            if findings[1].state == FAIL:
                return None, [*findings, *skipped(_RIGHTS, MEMORY)]
            try:
                return cache.memory(client, settings), findings
            except SyncError as error:
                advice = "allow +info to this user, or look at maxmemory yourself"
                return None, [*findings, Finding(MEMORY, SKIPPED, str(error), advice)]
    except SyncError as error:
        return None, [failed(_SERVER, error), *skipped(_SERVER, _RIGHTS, MEMORY)]


def _rights(client: cache.Client, settings: Settings) -> Finding:
    if error := cache.write_error(client, settings):
        return failed(_RIGHTS, error)
    found = f"SET may write reco:*, and {client.reads} reads it"
    if client.reads == "EXISTS":
        advice = "a dry run compares values: allow +mget"
        return Finding(_RIGHTS, WARN, found, advice)
    return Finding(_RIGHTS, OK, found)


def room(memory: Memory, run: Look) -> Finding | None:
    """Compare the room with what the keys of a mart need; None: the sync writes no keys."""
    keys, sample = run.tally.metrics.keys, run.sample
    values = getattr(importlib.import_module(f"etl.{run.job.sync}"), "to_key_values", None)
    if keys is None or sample is None or values is None:
        return None
    pairs = [pair for batch in values(sample) for pair in batch]
    each = sum(len(key.encode()) + len(value) + memory.beside for key, value in pairs)
    new = run.tally.counts.get("inserted", len(pairs)) / max(len(pairs), 1)
    due = round(each / max(len(pairs), 1) * keys * new)
    policy = f", {memory.policy}" if memory.policy else ""
    needs = f"{counted(keys, 'key')}, {due / 1e6:,.1f} MB of them new"
    if memory.most is None:
        used = f"{memory.used / 1e6:,.1f} MB in use, no maxmemory{policy}"
        return Finding(MEMORY, OK, f"{needs}; {used}")
    free = memory.most - memory.used
    found = f"{needs}; {free / 1e6:,.1f} of {memory.most / 1e6:,.1f} MB are free{policy}"
    if due * _SURE <= free:
        return Finding(MEMORY, OK, found)
    end = "keys are evicted" if memory.policy not in ("", "noeviction") else "Redis takes no more"
    state = FAIL if due > free * _SURE else WARN
    more = (memory.used + due * _SURE) / 1e6
    return Finding(MEMORY, state, f"{found}: {end}", f"raise maxmemory to {more:,.0f} MB or more")
