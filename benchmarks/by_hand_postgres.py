"""By hand for Postgres: multi-row INSERT ... ON CONFLICT of every row, as one writes it first.

usage: by_hand_postgres.py URI WAREHOUSE
"""

import sys

import duckdb
import psycopg

uri, warehouse = sys.argv[1:]
ROWS = 1_000  # of one statement
UPSERT = """
    INSERT INTO bench.by_hand
        (user_id, segment, total_searches, total_conversions, lifetime_value)
    VALUES {}
    ON CONFLICT (user_id) DO UPDATE SET
        segment = excluded.segment,
        total_searches = excluded.total_searches,
        total_conversions = excluded.total_conversions,
        lifetime_value = excluded.lifetime_value,
        synced_at = now()
"""

with duckdb.connect(warehouse, read_only=True) as mart, psycopg.connect(uri) as target:
    rows = mart.execute(
        "SELECT user_id, segment, lifetime_searches::BIGINT, lifetime_conversions::BIGINT,"
        " lifetime_revenue FROM main_marketing.mart_user_segments"
    )
    cursor = psycopg.ClientCursor(target)  # values go into the text, as with execute_values
    while batch := rows.fetchmany(ROWS):
        values = ", ".join(["(%s, %s, %s, %s, %s)"] * len(batch))
        cursor.execute(UPSERT.format(values), [value for row in batch for value in row])
