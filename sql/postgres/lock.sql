-- Try to take what keeps runs of sync $1 apart: for the whole mart ($3 null), or for shard $2 of
-- $3. A whole run excludes every other, and a shard a run of the same shard. The second lock
-- only tells into how many shards the run cuts the mart (see lock_owner.sql).
SELECT CASE
    WHEN $3::int IS NULL THEN pg_try_advisory_xact_lock(hashtextextended($1, 0))
    WHEN NOT pg_try_advisory_xact_lock_shared(hashtextextended($1, 0)) THEN false
    WHEN NOT pg_try_advisory_xact_lock_shared(hashtext($1), $3::int) THEN false
    ELSE pg_try_advisory_xact_lock(hashtextextended($1 || ' ' || $2::int || '/' || $3::int, 0))
END AS held
