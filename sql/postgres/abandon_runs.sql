-- Runs of sync $1 (shard $2 of $3; null: of all) that say `running` though their lock is free:
-- their process was killed. The caller holds the lock; $4 is its own run.
UPDATE etl.sync_runs
SET status = 'failed', finished_at = now(), error = 'abandoned: the process ended without a word'
WHERE
    sync = $1
    AND status = 'running'
    AND run_id <> $4
    AND ($3::int IS NULL OR (shard = $2::int AND shards = $3::int))
RETURNING run_id, started_at
