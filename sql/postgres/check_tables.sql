-- What is odd of the tables $1, a JSON list of {name, columns: {name: type}, keys: [[names]],
-- checks: [names]}: a policy that hides rows from this role, what runs when a row is written, columns
-- that are missing, generated or of other types, keys that are missing, columns and rules that are not
-- ours. `kind` says which of these a row tells.
WITH asked AS (
    SELECT t.oid, a.name, a.columns, a.keys, a.checks
    FROM jsonb_to_recordset($1::jsonb) AS a (name text, columns jsonb, keys jsonb, checks jsonb)
    JOIN pg_catalog.pg_namespace AS n ON n.nspname = split_part(a.name, '.', 1)
    JOIN pg_catalog.pg_class AS t
        ON t.relnamespace = n.oid AND t.relname = split_part(a.name, '.', 2)
),

columns AS (
    SELECT a.name AS tab, c.attname::text AS name, c.atttypid, c.atttypmod, c.attnotnull,
        c.attcollation, c.attgenerated,
        c.atthasdef OR c.attidentity <> '' OR c.attgenerated <> '' AS is_filled,
        a.columns ->> c.attname::text AS type
    FROM asked AS a
    JOIN pg_catalog.pg_attribute AS c ON c.attrelid = a.oid
    WHERE c.attnum > 0 AND NOT c.attisdropped
),

-- pg_trigger.h: 1 for each row, 2 before, 64 instead of.
triggers AS (
    SELECT
        a.name AS tab,
        CASE WHEN t.tgtype & 1 > 0 AND t.tgtype & 66 > 0 THEN 'dropper' ELSE 'trigger' END AS kind,
        quote_ident(t.tgname) || ' (function ' || t.tgfoid::regproc || ')' AS name
    FROM asked AS a
    JOIN pg_catalog.pg_trigger AS t ON t.tgrelid = a.oid
    WHERE NOT t.tgisinternal AND t.tgenabled <> 'D'
)

SELECT 'policy' AS kind, name, '' AS what
FROM asked
WHERE row_security_active(oid)
UNION ALL
SELECT t.kind, t.tab, string_agg(t.name, ', ' ORDER BY t.name)
FROM triggers AS t
GROUP BY t.kind, t.tab
UNION ALL
SELECT 'rule', a.name, string_agg(quote_ident(r.rulename), ', ')
FROM asked AS a
JOIN pg_catalog.pg_rewrite AS r ON r.ev_class = a.oid
WHERE r.ev_type > '1' AND r.ev_enabled <> 'D'
GROUP BY a.name
UNION ALL
-- Between kinds of types, such as numbers and texts, nothing is compared.
SELECT
    CASE WHEN t.typcategory = o.typcategory THEN 'type' ELSE 'other type' END,
    c.tab || '.' || c.name,
    format_type(c.atttypid, c.atttypmod) || ' and not ' || c.type
FROM columns AS c
JOIN pg_catalog.pg_type AS t ON t.oid = c.atttypid
JOIN pg_catalog.pg_type AS o ON o.oid = to_regtype(c.type)
WHERE c.atttypid <> o.oid
UNION ALL
SELECT 'absent', a.name, string_agg(o.name, ', ' ORDER BY o.name)
FROM asked AS a
CROSS JOIN LATERAL jsonb_object_keys(a.columns) AS o (name)
WHERE NOT EXISTS (SELECT FROM columns AS c WHERE c.tab = a.name AND c.name = o.name)
GROUP BY a.name
UNION ALL
SELECT 'key', a.name, string_agg(k.columns::text, ', ')
FROM asked AS a
CROSS JOIN LATERAL jsonb_array_elements(a.keys) AS k (columns)
WHERE
    NOT EXISTS (
        SELECT
        FROM pg_catalog.pg_index AS i
        CROSS JOIN LATERAL (
            SELECT jsonb_agg(c.attname) AS columns
            FROM pg_catalog.pg_attribute AS c
            WHERE c.attrelid = a.oid AND c.attnum = ANY(i.indkey[0:i.indnkeyatts - 1])
        ) AS x
        WHERE
            i.indrelid = a.oid
            AND i.indisunique
            AND i.indisvalid
            AND i.indpred IS NULL
            AND x.columns @> k.columns
            AND x.columns <@ k.columns
    )
GROUP BY a.name
UNION ALL
SELECT 'generated', tab || '.' || name, ''
FROM columns
WHERE type IS NOT NULL AND attgenerated <> ''
UNION ALL
SELECT 'collation', c.tab || '.' || c.name, quote_ident(o.collname)
FROM columns AS c
JOIN pg_catalog.pg_collation AS o ON o.oid = c.attcollation
WHERE c.type IS NOT NULL AND NOT o.collisdeterministic
UNION ALL
SELECT 'not null', tab || '.' || name, ''
FROM columns
WHERE type IS NULL AND attnotnull AND NOT is_filled
UNION ALL
SELECT 'constraint', a.name, string_agg(quote_ident(o.conname), ', ')
FROM asked AS a
JOIN pg_catalog.pg_constraint AS o ON o.conrelid = a.oid
WHERE o.contype IN ('c', 'f', 'x') AND NOT a.checks ? o.conname::text
GROUP BY a.name
ORDER BY kind, name
