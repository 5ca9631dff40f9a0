-- The last ok run of sync $1: how many rows its mart had and when it began.
SELECT
    r.mart_rows,
    (
        SELECT min(s.started_at)
        FROM etl.sync_runs AS s
        WHERE s.run_id = r.run_id AND s.sync = r.sync AND s.status = 'ok'
    ) AS began_at
FROM etl.sync_runs AS r
WHERE r.sync = $1 AND r.status = 'ok'
ORDER BY r.started_at DESC
LIMIT 1
