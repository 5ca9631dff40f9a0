-- How many users crm.user_segments has in shard $1 of $2.
SELECT count(*) AS rows
FROM crm.user_segments
WHERE $2::int = 1 OR etl.shard_of(user_id, $2::int) = $1::int
