-- About how many rows the table $2 of schema $1 has, without counting; 0 for a view.
SELECT coalesce(max(estimated_size), 0)::BIGINT
FROM duckdb_tables()
WHERE lower(schema_name) = lower($1) AND lower(table_name) = lower($2)
