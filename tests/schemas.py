"""The schemas crm and etl between two tests: emptied where a test left them as they were made.

Making them anew takes ten times as long as all that a small test does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from etl import postgres
from etl.errors import SyncError
from etl.init_db import init_db
from etl.settings import Settings

if TYPE_CHECKING:
    from etl.postgres import Connection

# What every object of the two schemas is, and what crm.email_templates holds, which init_db fills.
# DDL gives a row of the catalog another xmin; VACUUM, ANALYZE and TRUNCATE do so in pg_class alone.
_LOOK = """
    WITH ours AS (SELECT oid FROM pg_namespace WHERE nspname IN ('crm', 'etl')),
    relations AS (SELECT * FROM pg_class WHERE relnamespace IN (FROM_OURS)),
    marks (mark) AS (
        SELECT concat('n', oid, ' ', xmin) FROM pg_namespace WHERE oid IN (FROM_OURS)
        UNION ALL SELECT (
            to_jsonb(r) - '{relfilenode,relpages,reltuples,relallvisible,relallfrozen}'::text[]
            - '{relfrozenxid,relminmxid}'::text[])::text FROM relations AS r
        UNION ALL SELECT concat('a', attrelid, ' ', attnum, ' ', xmin)
            FROM pg_attribute WHERE attrelid IN (FROM_RELATIONS)
        UNION ALL SELECT concat('i', indexrelid, ' ', xmin)
            FROM pg_index WHERE indrelid IN (FROM_RELATIONS)
        UNION ALL SELECT concat('c', oid, ' ', xmin)
            FROM pg_constraint WHERE connamespace IN (FROM_OURS)
        UNION ALL SELECT concat('t', oid, ' ', xmin)
            FROM pg_trigger WHERE tgrelid IN (FROM_RELATIONS)
        UNION ALL SELECT concat('p', oid, ' ', xmin)
            FROM pg_policy WHERE polrelid IN (FROM_RELATIONS)
        UNION ALL SELECT concat('r', oid, ' ', xmin)
            FROM pg_rewrite WHERE ev_class IN (FROM_RELATIONS)
        UNION ALL SELECT concat('h', inhrelid, ' ', inhparent) FROM pg_inherits
            WHERE inhrelid IN (FROM_RELATIONS) OR inhparent IN (FROM_RELATIONS)
        UNION ALL SELECT concat('f', oid, ' ', xmin) FROM pg_proc WHERE pronamespace IN (FROM_OURS)
        UNION ALL SELECT concat('y', oid, ' ', xmin) FROM pg_type WHERE typnamespace IN (FROM_OURS)
        UNION ALL SELECT concat('s', oid, ' ', xmin)
            FROM pg_statistic_ext WHERE stxnamespace IN (FROM_OURS)
        UNION ALL SELECT concat('d', oid, ' ', xmin)
            FROM pg_default_acl WHERE defaclnamespace IN (FROM_OURS)
    )
    SELECT md5(string_agg(mark, '|' ORDER BY mark)) AS mark FROM marks
""".replace("FROM_OURS", "SELECT oid FROM ours").replace(
    "FROM_RELATIONS", "SELECT oid FROM relations"
)
_TEMPLATES = (
    "SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) AS mark FROM crm.email_templates AS t"
)

# TRUNCATE, because DELETE leaves a file and statistics, by which a run decides what it reads, and
# autovacuum takes those whenever it likes.
_EMPTY = """
DO $$
DECLARE
    filled text;
BEGIN
    SELECT string_agg(oid::regclass::text, ', ') INTO filled FROM pg_catalog.pg_class
    WHERE relnamespace IN ('crm'::regnamespace, 'etl'::regnamespace)
        AND relkind = 'r' AND oid <> 'crm.email_templates'::regclass
        AND (pg_catalog.pg_relation_size(oid) > 0 OR reltuples >= 0);
    IF filled IS NOT NULL THEN
        EXECUTE 'TRUNCATE ' || filled;
    END IF;
    PERFORM pg_catalog.setval(oid::regclass, 1, false) FROM pg_catalog.pg_class
    WHERE relnamespace IN ('crm'::regnamespace, 'etl'::regnamespace) AND relkind = 'S';
END
$$
"""


class Schemas:
    """The two schemas, made when a test needs them and they are not there as they should be.

    One connection serves all tests, because Postgres reads its catalog anew for each.
    """

    def __init__(self) -> None:
        self._made: str | None = None
        self._connection: Connection | None = None

    def make(self) -> None:
        """See to it that both are there, without a row."""
        if self._made is None:
            init_db()
            self._made = self._mark(_LOOK) + self._mark(_TEMPLATES)
            self._connected().commit()

    def clear(self) -> None:
        """Empty them, or drop them where a test has changed them."""
        try:
            self._clear()
        except SyncError:  # the test has ended this connection, or the server
            self.close()
            self._clear()

    def close(self) -> None:
        """Leave the server."""
        if self._connection:
            self._connection.close()
        self._connection = None

    def _clear(self) -> None:
        look = self._mark(_LOOK)
        if self._made and self._made.startswith(look):
            look += self._mark(_TEMPLATES)
        if look == self._made:
            postgres.execute(self._connected(), _EMPTY)
        else:
            postgres.execute(self._connected(), "DROP SCHEMA IF EXISTS crm, etl CASCADE")
            self._made = None
        self._connected().commit()

    def _mark(self, sql: str) -> str:
        return str(postgres.select(self._connected(), sql)[0]["mark"])

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = postgres.connect(Settings.from_environment(), "tests")
        return self._connection
