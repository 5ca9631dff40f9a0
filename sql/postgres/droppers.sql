-- What may drop a row on its way into the table $1 or one of its partitions, in silence: enabled
-- triggers that run before or instead of the write, and rules.
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
    -- pg_trigger.h: 1 for each row, 2 before, 64 instead of.
    AND t.tgtype & 1 > 0
    AND t.tgtype & 66 > 0
UNION
SELECT 'rule ' || quote_ident(r.rulename)
FROM pg_catalog.pg_rewrite AS r
WHERE
    r.ev_class IN (SELECT oid FROM tables)
    AND r.ev_type > '1' -- not SELECT
    AND r.ev_enabled <> 'D'
ORDER BY name
