"""DuckDB's Postgres extension: read the target back, EXCEPT ALL, stage, one upsert by the server.

usage: duckdb_postgres.py URI WAREHOUSE TABLE [--insert]
With --insert: a plain INSERT of every row, into a table that is empty.
"""

import sys
from importlib.resources import files

import duckdb

uri, warehouse, table, *flags = sys.argv[1:]
COLUMNS = "user_id, segment, total_searches, total_conversions, lifetime_value"
MART = """
    SELECT user_id, segment, lifetime_searches::BIGINT AS total_searches,
        lifetime_conversions::BIGINT AS total_conversions,
        lifetime_revenue::DECIMAL(14, 2) AS lifetime_value
    FROM mart.main_marketing.mart_user_segments
"""
UPSERT = f"""
    INSERT INTO {table} ({COLUMNS}) SELECT {COLUMNS} FROM {table}_staging
    ON CONFLICT (user_id) DO UPDATE SET
        segment = excluded.segment,
        total_searches = excluded.total_searches,
        total_conversions = excluded.total_conversions,
        lifetime_value = excluded.lifetime_value,
        synced_at = now()
"""

db = duckdb.connect()
(extension,) = files("duckdb_extension_postgres_scanner").rglob("*.duckdb_extension")
db.execute(f"LOAD '{extension}'")
db.execute(f"ATTACH '{warehouse}' AS mart (READ_ONLY)")
db.execute(f"ATTACH '{uri}' AS target (TYPE postgres)")
if flags == ["--insert"]:
    db.execute(f"INSERT INTO target.{table} ({COLUMNS}) {MART} ORDER BY user_id")
    sys.exit()

(changed,) = db.execute(
    f"CREATE TEMP TABLE changed AS {MART} EXCEPT ALL SELECT {COLUMNS} FROM target.{table}"
).fetchone()
if changed:
    staging = f"DROP TABLE IF EXISTS {table}_staging; CREATE UNLOGGED TABLE {table}_staging AS"
    db.execute(
        "CALL postgres_execute('target', ?)",
        [f"{staging} SELECT {COLUMNS} FROM {table} WHERE false"],
    )
    db.execute(f"INSERT INTO target.{table}_staging FROM changed ORDER BY user_id")
    db.execute("CALL postgres_execute('target', ?)", [UPSERT])
