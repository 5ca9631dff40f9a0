-- What crm.user_segments holds of the mart's columns, in the shard of create_shard.sql. Without
-- parameters, because the driver streams only such statements. Money has at most 14 digits, which a
-- float8 keeps exactly and a client reads faster than a numeric.
SELECT user_id, segment, total_searches, total_conversions, lifetime_value::float8
FROM crm.user_segments
WHERE
    (SELECT s.shards FROM pg_temp.shard AS s) = 1
    OR etl.shard_of(user_id, (SELECT s.shards FROM pg_temp.shard AS s))
    = (SELECT s.index FROM pg_temp.shard AS s)
