"""SearchFlow's reverse ETL: dbt marts in DuckDB -> Postgres and Redis."""

__version__ = "0.1.0"
