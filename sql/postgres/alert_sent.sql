-- Say of the runs $1 (a JSON list of ids) that failed that somebody was told.
UPDATE etl.sync_runs
SET alerted_at = now()
WHERE status <> 'ok' AND run_id IN (SELECT jsonb_array_elements_text($1::jsonb))
