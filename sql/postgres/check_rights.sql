-- Which of the rights $1 the connected role lacks: a JSON list of {kind, name, privilege, columns}, the
-- columns null for all of a table. What is not there is left out.
WITH asked AS (
    SELECT a.kind, a.name, a.privilege, c.name AS column_name, a.place
    FROM jsonb_to_recordset($1::jsonb)
        AS a (kind text, name text, privilege text, columns jsonb, place int)
    LEFT JOIN LATERAL jsonb_array_elements_text(a.columns) AS c (name) ON true
),

found AS (
    SELECT a.*, has_schema_privilege(n.oid, a.privilege) AS granted
    FROM asked AS a
    JOIN pg_catalog.pg_namespace AS n ON n.nspname = a.name
    WHERE a.kind = 'schema'
    UNION ALL
    SELECT a.*, has_database_privilege(d.oid, a.privilege)
    FROM asked AS a
    JOIN pg_catalog.pg_database AS d ON d.datname = current_database()
    WHERE a.kind = 'database'
    UNION ALL
    SELECT
        a.*,
        CASE WHEN a.column_name IS NULL THEN has_table_privilege(t.oid, a.privilege)
            ELSE has_column_privilege(t.oid, a.column_name, a.privilege)
        END
    FROM asked AS a
    JOIN pg_catalog.pg_namespace AS n ON n.nspname = split_part(a.name, '.', 1)
    JOIN pg_catalog.pg_class AS t
        ON t.relnamespace = n.oid AND t.relname = split_part(a.name, '.', 2)
    WHERE a.kind = 'table' AND (
        a.column_name IS NULL
        OR EXISTS (
            SELECT FROM pg_catalog.pg_attribute AS c
            WHERE c.attrelid = t.oid AND c.attname = a.column_name AND NOT c.attisdropped
        )
    )
    UNION ALL
    SELECT a.*, has_function_privilege(p.oid, a.privilege)
    FROM asked AS a
    JOIN pg_catalog.pg_namespace AS n ON n.nspname = split_part(a.name, '.', 1)
    JOIN pg_catalog.pg_proc AS p
        ON p.pronamespace = n.oid AND p.proname = split_part(a.name, '.', 2)
    WHERE a.kind = 'function'
)

SELECT
    f.kind,
    f.name,
    string_agg(
        DISTINCT f.privilege || coalesce(' (' || quote_ident(f.column_name) || ')', ''), ', '
    ) AS privileges
FROM found AS f
WHERE NOT f.granted
GROUP BY f.kind, f.name
ORDER BY min(f.place), f.name
