"""Why Postgres, a pooler before it or libpq says no: whether that may pass, and what to do.

Only what is known to pass is tried again. It is told by SQLSTATE where there is one. ADBC hands on
none while it connects, so that PgBouncer's and Postgres's own words are asked for there; a refusal
in words that are not known, such as those of another language, is final.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# What libpq, which speaks English alone, says of a server that was not reached or is gone.
CUT = re.compile(
    r"server closed the connection unexpectedly|no connection to the server|connection not open"
    r"|could not (send|receive) (data|SSL negotiation|startup)[^\n]*|SSL SYSCALL error[^\n]*"
    r"|SSL connection has been closed unexpectedly|Connection (refused|reset by peer|timed out)"
    r"|timeout expired|No route to host|Network is unreachable|Host is (down|unreachable)"
    r"|Broken pipe|could not translate host name[^\n]*"
)


# What PgBouncer says where each statement may go to another session.
STATEMENT_POOLING = re.compile("transaction blocks not allowed in statement pooling mode")


@dataclass(frozen=True)
class Cause:
    """A pattern of `<who> <words>`, what to do, and whether the same may succeed.

    What `passes` is tried again in a moment; `later` is for a scheduler, which waits minutes.
    """

    pattern: str
    advice: str = ""
    passes: bool = False
    later: bool = False


_LOGIN = "check POSTGRES_USER and POSTGRES_PASSWORD"
_REACH = "; is it up, and are POSTGRES_HOST and POSTGRES_PORT right?"
_TLS = "check PGSSLMODE"
_PRIMARY = (
    "; it takes no writes: let POSTGRES_HOST be the primary, or see who set"
    " default_transaction_read_only"
)

# Who is a SQLSTATE, `refused` (a server while we connect), `libpq` or `driver`; the first that
# matches counts. In the advice, {user}, {seconds} and {blocker} are filled in.
_CAUSES = (
    # Known to pass.
    Cause(
        r"57P0[123] |refused .*(shutting down|starting up|not yet accepting connections"
        r"|recovery mode|terminating connection)",
        "; it is being stopped or started: run again when it is up",
        passes=True,
    ),
    Cause(
        r"53300 |refused .*(too many (clients|connections)|connection slots"
        r"|no more connections allowed)",
        "; end other sessions, or raise max_connections, the CONNECTION LIMIT of role or database,"
        " or max_client_conn of the pooler",
        passes=True,
    ),
    Cause(
        r"(08P01|refused) .*(query_wait_timeout|pgbouncer cannot connect to server"
        r"|server login has been failing|server_login_retry)",
        "; the pooler gets no connection to Postgres: is that up, and is the pool large enough"
        " (default_pool_size)?",
        passes=True,
    ),
    Cause(
        rf"refused {STATEMENT_POOLING.pattern}",
        "; a run is a transaction: let the pooler have pool_mode = transaction, or session",
    ),
    Cause(r"08(000|001|003|006) ", passes=True),
    Cause(r"40(001|P01) ", "; another session was in the way: run again", passes=True),
    Cause(rf"libpq .*({CUT.pattern})", _REACH, passes=True),
    Cause(r"libpq .*\.s\.PGSQL\.\d+.*: No such file or directory", _REACH, passes=True),
    # libpq, which came no further.
    Cause(r"libpq .*password", f"; {_LOGIN}"),
    Cause(
        r"libpq .*server does not support SSL",
        f"; {_TLS}: `prefer` does without TLS where the server, or the pooler, has none",
    ),
    Cause(r"libpq .*(certificate|SSL|sslmode|TLS)", f"; {_TLS}, PGSSLROOTCERT and POSTGRES_HOST"),
    Cause(r"libpq .*authentication method", "; the server wants another than PGREQUIREAUTH says"),
    Cause(
        r"libpq .*(not read-only|not in hot standby)",
        "; let PGTARGETSESSIONATTRS be read-write: a run writes",
    ),
    Cause(r"libpq .*(read-only|hot standby)", _PRIMARY, later=True),  # a failover, say
    Cause(r"libpq .*cannot connect to ", _REACH),
    Cause(r"libpq ", "; check the variables POSTGRES_... and PG..."),
    # A server, or a pooler, that turned us away.
    Cause(
        r"refused .*(pg_hba\.conf|SSL required)",
        f"; {_TLS}: where pg_hba.conf says hostssl it must be `require` or stricter; else let the"
        f" login in there, or {_LOGIN}",
    ),
    Cause(
        r"3D000 |refused .*(database .*does not exist|no such database)",
        "; check POSTGRES_DB, or create it",
    ),
    Cause(
        r"refused .*(startup parameter|configuration parameter|value for parameter|set parameter)",
        "; unset PGOPTIONS, or have the pooler ignore_startup_parameters (pgbouncer.ini)",
    ),
    Cause(r"refused .*permission denied for database", "; grant CONNECT on it to {user}"),
    Cause(r"28... |refused .*(authentication|password|role|login)", f"; {_LOGIN}"),
    Cause(
        r"refused ",
        f"; it turns us away: {_LOGIN}, POSTGRES_DB, PGOPTIONS, its pg_hba.conf and its limits",
    ),
    # A server that did not carry out a statement.
    Cause(r"25006 ", _PRIMARY, later=True),
    Cause(r"53100 |58030 .*space", "; the server's disk is full: make room there"),
    Cause(r"53400 ", "; raise temp_file_limit for {user}, or load in shards (--shard I/N)"),
    Cause(
        r"53200 ",
        "; give the server memory or, where locks are short, raise max_locks_per_transaction; or"
        " load in shards (--shard I/N)",
    ),
    Cause(
        r"55P03 ",
        ": {blocker} holds a lock that is needed; let it commit, or end it with"
        " pg_terminate_backend",
        later=True,
    ),
    Cause(
        r"57014 .*user request",
        "; somebody cancelled it (pg_cancel_backend): run again",
        later=True,
    ),
    Cause(r"57014 ", "; a statement may take {seconds} s (POSTGRES_STATEMENT_TIMEOUT)", later=True),
    Cause(
        r"42501 .*row-level security",
        "; a policy hides rows from {user}: give it BYPASSRLS, or use another role",
    ),
    Cause(r"42501 .*(permission denied|must be)", "; grant it to {user}"),
    Cause(
        r"42501 ",
        "; grant it to {user}, or BYPASSRLS where a policy of row-level security is the reason",
    ),
    Cause(
        r"3F000 |42P01 |42703 |42883 .*\b(?:etl|crm)\.\w+\(",
        "; run `python -m etl.init_db` (make init-db) to bring the database up to date, or, where"
        " that has nothing to do, compare the table with sql/postgres/schema.sql",
    ),
    Cause(r"42P10 ", "; the table lacks the key that sql/postgres/schema.sql gives it"),
    Cause(
        r"42804 |42883 |42846 |42P22 |22P02 |22001 |22003 |428C9 ",
        "; compare the table with sql/postgres/schema.sql, and alter its column",
    ),
    Cause(r"22P05 ", "; use a database in UTF8 (SHOW server_encoding), or correct the mart"),
    Cause(r"P0... |.* raised an error", "; the server's log has its words"),
    Cause(
        r"23... .*\(etl\.\w+\)",
        "; the constraint is not of sql/postgres/schema.sql: drop it, or let it allow what runs"
        " write there",
    ),
    Cause(r"23... ", "; the mart breaks a rule of the table: correct one of the two"),
    Cause(r""),
)


def find(heard: str) -> Cause:
    """Return the first cause whose pattern fits `<who> <words>`."""
    return next(cause for cause in _CAUSES if re.match(cause.pattern, heard, re.DOTALL))
