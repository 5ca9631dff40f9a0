-- What stands in quotes in the views of the warehouse and in the query $1, quotes included: names of
-- files are among it.
SELECT DISTINCT unnest(regexp_extract_all(code.sql, '''[^'']+''|"[^"]+"'))
FROM (
    SELECT sql FROM duckdb_views() WHERE NOT internal
    UNION ALL
    SELECT $1
) AS code
