-- Runs of sync $1 that say `running` though their lock is free: their process was killed. The
-- caller, run $4, holds the lock of the whole mart ($3 null), which excludes all others, or of
-- shard $2 of $3, which excludes that shard and all runs that cut the mart otherwise.
UPDATE etl.sync_runs
SET status = 'failed', finished_at = now(), error = 'abandoned: the process ended without a word'
WHERE
    sync = $1
    AND status = 'running'
    AND run_id <> $4
    AND ($3::int IS NULL OR shards <> $3::int OR shard = $2::int)
RETURNING run_id, started_at, host
