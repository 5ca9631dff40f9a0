-- Write or rewrite a run's row in the ledger; $1 is the row as JSON. An ok row came with its
-- data and is never rewritten; nothing is returned then.
INSERT INTO etl.sync_runs AS r
SELECT (jsonb_populate_record(NULL::etl.sync_runs, $1::jsonb)).*
ON CONFLICT (run_id, sync, shard) DO UPDATE SET
    status = excluded.status,
    finished_at = excluded.finished_at,
    mart_rows = excluded.mart_rows,
    extracted = excluded.extracted,
    rejected = excluded.rejected,
    inserted = excluded.inserted,
    updated = excluded.updated,
    unchanged = excluded.unchanged,
    deleted = excluded.deleted,
    written = excluded.written,
    below_threshold = excluded.below_threshold,
    cancelled = excluded.cancelled,
    suppressed = excluded.suppressed,
    held_back = excluded.held_back,
    unmapped = excluded.unmapped,
    seconds = excluded.seconds,
    warning = excluded.warning,
    error = excluded.error
WHERE r.status <> 'ok'
RETURNING r.run_id
