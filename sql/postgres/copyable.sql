-- The columns of the table $1 and their types, where COPY into it does what INSERT would: an ordinary
-- table that never held a row, without triggers, rules or policies. No rows of any other.
SELECT
    a.attname AS name,
    format_type(a.atttypid, a.atttypmod) AS type
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0
WHERE
    c.oid = $1::regclass
    AND c.relkind = 'r'
    AND pg_relation_size(c.oid) = 0
    AND NOT (c.relhastriggers OR c.relhasrules OR c.relrowsecurity)
