-- One run of a sync at a time: $1 is the sync; $2 the shard ('1/4'), null for the whole mart.
-- A whole run excludes every other; runs of different shards exclude only the whole.
SELECT CASE
    WHEN $2::text IS NULL
        THEN pg_try_advisory_lock(hashtextextended($1, 0))
    ELSE
        pg_try_advisory_lock_shared(hashtextextended($1, 0))
        AND pg_try_advisory_lock(hashtextextended($1 || ' ' || $2, 0))
END AS held
