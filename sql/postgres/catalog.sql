-- Every schema, table, index, column, constraint and function there is, by the names that schema.sql
-- heads its statements with.
SELECT n.nspname AS name FROM pg_catalog.pg_namespace AS n
UNION ALL
SELECT n.nspname || '.' || c.relname
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_index AS i ON i.indexrelid = c.oid
-- An index whose building was cut is invalid.
WHERE n.nspname IN ('crm', 'etl') AND i.indisvalid IS NOT false
UNION ALL
SELECT n.nspname || '.' || c.relname || '.' || a.attname
FROM pg_catalog.pg_attribute AS a
JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname IN ('crm', 'etl') AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT n.nspname || '.' || c.relname || '.' || o.conname
FROM pg_catalog.pg_constraint AS o
JOIN pg_catalog.pg_class AS c ON c.oid = o.conrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname IN ('crm', 'etl')
UNION ALL
SELECT n.nspname || '.' || p.proname
FROM pg_catalog.pg_proc AS p
JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
WHERE n.nspname IN ('crm', 'etl')
