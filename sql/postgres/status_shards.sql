-- Of syncs that are spread over shards: the shards whose last run was not ok, the newest first. An
-- attempt that found the lock taken says nothing.
WITH ended AS (
    SELECT DISTINCT ON (sync, shards, shard) sync, shards, shard, status, started_at, error
    FROM etl.sync_runs
    WHERE
        status <> 'running'
        AND NOT coalesce(starts_with(error, sync || ' is already running: '), false)
    ORDER BY sync, shards, shard, started_at DESC
),

newest AS (
    SELECT DISTINCT ON (sync) sync, shards
    FROM ended
    ORDER BY sync, started_at DESC
)

SELECT e.sync, e.shard, e.shards, e.status, e.started_at, e.error
FROM ended AS e
JOIN newest AS n ON n.sync = e.sync AND n.shards = e.shards
WHERE e.shards > 1 AND e.status <> 'ok'
ORDER BY e.started_at DESC
