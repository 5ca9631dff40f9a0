-- About how many rows the table $1 has, with all its partitions, by the planner's statistics.
SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint AS rows
FROM pg_partition_tree($1::regclass) AS p
JOIN pg_class AS c ON c.oid = p.relid
WHERE p.isleaf
