"""The tables that all tests share."""

from __future__ import annotations

from schemas import Schemas

from etl import postgres
from etl.postgres import Connection


def test_a_test_leaves_tables_as_if_they_were_new(database: Connection, schemas: Schemas) -> None:
    postgres.execute(database, "INSERT INTO crm.email_suppressions (user_id) VALUES ('a')")
    postgres.execute(database, "ANALYZE crm.email_suppressions")
    database.commit()

    schemas.clear()

    (left,) = postgres.query(database, "table_stats", "crm.email_suppressions")
    assert left == {"rows": 0, "bytes": 0}
