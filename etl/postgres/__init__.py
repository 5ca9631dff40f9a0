"""Postgres over ADBC: query, COPY to a temporary table, merge. Only the caller commits."""

from etl.postgres.call import STOP_SECONDS, Call
from etl.postgres.copy import copy_to_temp, finish_copy, start_copy
from etl.postgres.errors import foreseen
from etl.postgres.merge import (
    UNIQUE_VIOLATION,
    Merge,
    insert,
    merge,
    refuse_altered,
    refuse_unwritten,
    write,
)
from etl.postgres.query import execute, execute_alone, query, savepoint, select, stream
from etl.postgres.session import Connection, connect, session
from etl.postgres.trust import trusted_session

__all__ = [
    "STOP_SECONDS",
    "UNIQUE_VIOLATION",
    "Call",
    "Connection",
    "Merge",
    "connect",
    "copy_to_temp",
    "execute",
    "execute_alone",
    "finish_copy",
    "foreseen",
    "insert",
    "merge",
    "query",
    "refuse_altered",
    "refuse_unwritten",
    "savepoint",
    "select",
    "session",
    "start_copy",
    "stream",
    "trusted_session",
    "write",
]
