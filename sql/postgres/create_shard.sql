-- Name the shard, $1 of $2, for statements that take no parameters.
CREATE TEMPORARY TABLE pg_temp.shard ON COMMIT DROP AS
SELECT $1::int AS index, $2::int AS shards
