-- The last $1 runs of each sync, newest first. A walk over shards is one run: its counts are
-- the sums of its rows, and it is ok when all of them are. An attempt that found the lock taken says
-- nothing of the sync: it is counted apart.
WITH runs AS (
    SELECT
        sync,
        run_id,
        CASE
            WHEN bool_or(status = 'running') THEN 'running'
            WHEN bool_or(status = 'failed') THEN 'failed'
            WHEN bool_or(status = 'refused') THEN 'refused'
            WHEN bool_or(status = 'cancelled') THEN 'cancelled'
            ELSE 'ok'
        END AS status,
        min(started_at) AS started_at,
        max(finished_at) AS finished_at,
        max(shards) AS shards,
        min(shard) AS first_shard,
        count(*) AS shards_seen,
        count(*) FILTER (WHERE status = 'ok') AS shards_ok,
        max(mart_rows) AS mart_rows,
        max(mart_built_at) AS mart_built_at,
        sum(extracted)::bigint AS extracted,
        sum(rejected)::bigint AS rejected,
        sum(inserted)::bigint AS inserted,
        sum(updated)::bigint AS updated,
        sum(unchanged)::bigint AS unchanged,
        sum(deleted)::bigint AS deleted,
        sum(written)::bigint AS written,
        sum(below_threshold)::bigint AS below_threshold,
        sum(cancelled)::bigint AS cancelled,
        sum(suppressed)::bigint AS suppressed,
        sum(held_back)::bigint AS held_back,
        sum(unmapped)::bigint AS unmapped,
        sum(seconds) AS seconds,
        bool_or(forced) AS forced,
        -- Each row has those of the shards before it as well.
        (array_agg(warning ORDER BY started_at DESC))[1] AS warning,
        min(error) AS error,
        min(version) AS version,
        min(host) AS host,
        min(started_by) AS started_by,
        coalesce(
            bool_and(status = 'failed' AND starts_with(error, sync || ' is already running: ')),
            false
        ) AS lock_taken
    FROM etl.sync_runs
    GROUP BY sync, run_id
)

SELECT *
FROM (
    SELECT
        *,
        row_number() OVER (PARTITION BY sync, lock_taken ORDER BY started_at DESC) AS recency
    FROM runs
) AS r
WHERE recency <= $1
ORDER BY started_at DESC
