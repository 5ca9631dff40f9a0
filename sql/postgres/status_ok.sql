-- Since when each sync is up to date: the end of its last ok run. Of one that is spread over
-- shards every shard must have been loaded, so that the oldest of them counts.
WITH loaded AS (
    SELECT sync, shards, shard, max(finished_at) AS finished_at
    FROM etl.sync_runs
    WHERE status = 'ok'
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
