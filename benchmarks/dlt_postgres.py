"""dlt for Postgres: merge with the strategy upsert, Arrow batches over parquet and ADBC.

As dlt's page "Fast loading with Arrow tables and parquet" has it, in the current folder.
usage: dlt_postgres.py URI WAREHOUSE DATASET [--skip-unchanged] [--key]
"""

import sys

import dlt
import duckdb

uri, warehouse, dataset, *flags = sys.argv[1:]
ROWS = 50_000  # of one Arrow batch: what dlt's own SQL source takes at a time


@dlt.resource(
    primary_key="user_id",
    # What makes dlt create an index; its primary_key makes none.
    columns={"user_id": {"unique": True}} if "--key" in flags else None,
    write_disposition={
        "disposition": "merge",
        "strategy": "upsert",
        "skip_unchanged_rows": "--skip-unchanged" in flags,
    },
)
def user_segments():
    with duckdb.connect(warehouse, read_only=True) as mart:
        yield from mart.sql(
            "SELECT user_id, segment, lifetime_searches::BIGINT AS total_searches,"
            " lifetime_conversions::BIGINT AS total_conversions,"
            " lifetime_revenue::DECIMAL(14, 2) AS lifetime_value"
            " FROM main_marketing.mart_user_segments"
        ).to_arrow_reader(ROWS)


destination = dlt.destinations.postgres(uri)
pipeline = dlt.pipeline(dataset, ".", destination=destination, dataset_name=dataset)
pipeline.run(user_segments(), loader_file_format="parquet").raise_on_failed_jobs()
