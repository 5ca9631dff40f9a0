-- Does the ledger say that run $1 of sync $2 has loaded shard $3?
SELECT count(*) > 0 AS yes
FROM etl.sync_runs
WHERE run_id = $1 AND sync = $2 AND shard = $3 AND status = 'ok'
