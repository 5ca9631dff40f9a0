-- The schemas of the warehouse by their full names, `main` first.
SELECT database_name, schema_name
FROM duckdb_schemas()
WHERE database_name IN (SELECT d.database_name FROM duckdb_databases() AS d WHERE NOT d.internal)
ORDER BY schema_name <> 'main', schema_name
