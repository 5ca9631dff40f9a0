"""The schemas crm and etl between two tests: emptied where a test left them as they were made.

Making them anew takes ten times as long as all that a small test does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from etl import postgres
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

# A large table is cut off, a small one emptied, which spares new files. The trigger of the queue
# counts what is deleted, so what it counted goes last.
_EMPTY = """
DO $$
DECLARE
    one regclass;
BEGIN
    FOR one IN
        SELECT oid FROM pg_catalog.pg_class
        WHERE relnamespace IN ('crm'::regnamespace, 'etl'::regnamespace)
            AND relkind = 'r' AND oid <> 'crm.email_templates'::regclass
        ORDER BY oid = 'crm.email_counts'::regclass
    LOOP
        IF pg_catalog.pg_relation_size(one) > 262144 THEN
            EXECUTE pg_catalog.format('TRUNCATE %s', one);
        ELSE
            EXECUTE pg_catalog.format('DELETE FROM %s', one);
        END IF;
    END LOOP;
    PERFORM pg_catalog.setval(oid::regclass, 1, false) FROM pg_catalog.pg_class
    WHERE relnamespace IN ('crm'::regnamespace, 'etl'::regnamespace) AND relkind = 'S';
END
$$
"""


class Schemas:
    """The two schemas, made when a test needs them and they are not there as they should be."""

    def __init__(self) -> None:
        self._made: str | None = None

    def make(self) -> None:
        """See to it that both are there, without a row."""
        if self._made is None:
            init_db()
            with postgres.session(Settings.from_environment(), "tests") as connection:
                self._made = _mark(connection, _LOOK) + _mark(connection, _TEMPLATES)

    def clear(self, connection: Connection) -> None:
        """Empty them, or drop them where a test has changed them."""
        look = _mark(connection, _LOOK)
        if self._made and self._made.startswith(look):
            look += _mark(connection, _TEMPLATES)
        if look == self._made:
            postgres.execute(connection, _EMPTY)
        else:
            postgres.execute(connection, "DROP SCHEMA IF EXISTS crm, etl CASCADE")
            self._made = None


def _mark(connection: Connection, sql: str) -> str:
    return str(postgres.select(connection, sql)[0]["mark"])
