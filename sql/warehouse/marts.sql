-- The tables that the query $1 reads by their bare name, and the schemas that hold each.
WITH parsed AS (SELECT json_serialize_sql($1) AS query),

read AS (SELECT DISTINCT unnest(json_extract_string(query, '$..table_name')) AS name FROM parsed),

own AS (SELECT unnest(json_extract_string(query, '$..cte_map.map[*].key')) AS name FROM parsed)

SELECT
    read.name AS mart,
    coalesce(
        list(t.table_schema ORDER BY t.table_schema) FILTER (t.table_schema IS NOT NULL), []
    ) AS schemas
FROM read
LEFT JOIN information_schema.tables AS t
    ON t.table_name = read.name AND t.table_catalog = current_database()
WHERE
    read.name NOT IN (SELECT own.name FROM own)
    -- A query that spells out the schema knows where to look.
    AND NOT regexp_matches($1, '\.\s*"?' || regexp_escape(read.name))
GROUP BY read.name
ORDER BY read.name
