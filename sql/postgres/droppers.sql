-- What may drop a row on its way into the table $1 or one of its partitions, or change it there, in
-- silence: enabled triggers and rules.
WITH tables AS (
    SELECT $1::regclass::oid AS oid
    UNION
    SELECT relid FROM pg_partition_tree($1::regclass)
)

SELECT 'trigger ' || quote_ident(t.tgname) || ' (function ' || t.tgfoid::regproc || ')' AS name
FROM pg_catalog.pg_trigger AS t
WHERE
    t.tgrelid IN (SELECT oid FROM tables)
    AND NOT t.tgisinternal
    AND t.tgenabled <> 'D'
UNION
SELECT 'rule ' || quote_ident(r.rulename)
FROM pg_catalog.pg_rewrite AS r
WHERE
    r.ev_class IN (SELECT oid FROM tables)
    AND r.ev_type > '1' -- not SELECT
    AND r.ev_enabled <> 'D'
ORDER BY name
