-- The storage version of the warehouse, and how many tables and views it has.
SELECT
    coalesce(d.tags['storage_version'], 'unknown') AS storage,
    (
        SELECT count(*)
        FROM system.information_schema.tables AS t
        WHERE t.table_catalog = d.database_name
    ) AS tables
FROM duckdb_databases() AS d
WHERE NOT d.internal
