-- Should the end of run $2 of sync $1 be told, and as what? Its failure: unless one of the same
-- shard was told within a day. Its success: when it ends failures of which one was told. An hour
-- is let off the day, because a daily run does not begin to the second.
WITH this AS (
    SELECT sync, shard, shards, status
    FROM etl.sync_runs
    WHERE sync = $1 AND run_id = $2
),

others AS (
    SELECT r.status, r.finished_at, r.alerted_at
    FROM etl.sync_runs AS r
    JOIN this AS t ON t.sync = r.sync AND t.shard = r.shard AND t.shards = r.shards
    WHERE r.run_id <> $2 AND r.finished_at < now() + interval '1 hour'
),

last_ok AS (
    SELECT coalesce(max(finished_at), '-infinity') AS at
    FROM others
    WHERE status = 'ok'
),

told AS (
    SELECT max(o.alerted_at) AS at
    FROM others AS o
    CROSS JOIN last_ok AS l
    WHERE o.finished_at > l.at
)

SELECT CASE
    WHEN t.status = 'ok' THEN o.at IS NOT NULL
    ELSE coalesce(o.at < now() - interval '23 hours', true)
END AS due
FROM this AS t
CROSS JOIN told AS o
