-- Name the shard, $1 of $2, for the statements of this transaction that take no parameters.
SELECT
    set_config('etl.shard', ($1::int)::text, true) AS shard,
    set_config('etl.shards', ($2::int)::text, true) AS shards
