-- The tables that the query $1 reads: the catalog and the schema it names each by ('' where it
-- does not), and the schemas of the warehouse that hold a table or view of that name.
WITH parsed AS (SELECT json_serialize_sql($1) AS query),

read AS (
    SELECT DISTINCT
        node.value ->> 'catalog_name' AS in_catalog,
        node.value ->> 'schema_name' AS in_schema,
        node.value ->> 'table_name' AS mart
    FROM parsed, json_tree(parsed.query) AS node
    WHERE node.type = 'OBJECT' AND node.value ->> 'type' = 'BASE_TABLE'
),

own AS (SELECT unnest(json_extract_string(query, '$..cte_map.map[*].key')) AS name FROM parsed)

SELECT
    read.in_catalog,
    read.in_schema,
    read.mart,
    coalesce(
        list(t.table_schema ORDER BY t.table_schema) FILTER (t.table_schema IS NOT NULL), []
    ) AS schemas
FROM read
LEFT JOIN system.information_schema.tables AS t
    ON
        lower(t.table_name) = lower(read.mart)
        AND t.table_catalog IN (SELECT database_name FROM duckdb_databases() WHERE NOT internal)
WHERE read.in_schema <> '' OR lower(read.mart) NOT IN (SELECT lower(own.name) FROM own)
GROUP BY ALL
ORDER BY ALL
