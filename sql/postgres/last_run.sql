-- How many rows the mart of sync $1 had at its last ok run.
SELECT mart_rows
FROM etl.sync_runs
WHERE sync = $1 AND status = 'ok'
ORDER BY started_at DESC
LIMIT 1
