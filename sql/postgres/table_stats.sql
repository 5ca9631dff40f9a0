-- About how many rows the table $1 has, with all its partitions, by the planner's statistics, and
-- in how many bytes: 0 of these where nothing was ever in it.
SELECT
    coalesce(sum(greatest(reltuples, 0)), 0)::bigint AS rows,
    coalesce(sum(pg_relation_size(oid)), 0)::bigint AS bytes
FROM pg_catalog.pg_class
WHERE
    relkind = 'r'
    AND (oid = $1::regclass OR oid IN (SELECT relid FROM pg_partition_tree($1::regclass)))
