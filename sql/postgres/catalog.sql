-- Every schema, table, index, column and function there is, by the names that schema.sql heads its
-- statements with.
SELECT n.nspname AS name FROM pg_catalog.pg_namespace AS n
UNION ALL
SELECT n.nspname || '.' || c.relname
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname IN ('crm', 'etl')
UNION ALL
SELECT n.nspname || '.' || c.relname || '.' || a.attname
FROM pg_catalog.pg_attribute AS a
JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname IN ('crm', 'etl') AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT n.nspname || '.' || p.proname
FROM pg_catalog.pg_proc AS p
JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
WHERE n.nspname IN ('crm', 'etl')
