-- Since when each sync is up to date: the end of its last ok run. Of one that is spread over
-- shards every shard must have been loaded, so that the oldest of them counts. A row of the future
-- counts for nothing, or nothing would be overdue ever again.
WITH loaded AS (
    SELECT sync, shards, shard, max(finished_at) AS finished_at
    FROM etl.sync_runs
    WHERE status = 'ok' AND finished_at < now() + interval '1 hour'
    GROUP BY sync, shards, shard
),

whole AS (
    SELECT sync, shards, min(finished_at) AS finished_at
    FROM loaded
    GROUP BY sync, shards
    HAVING count(*) = shards
)

SELECT sync, max(finished_at) AS ok_at
FROM whole
GROUP BY sync
