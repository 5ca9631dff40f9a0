-- Write or rewrite a run's row in the ledger; $1 is the row as JSON, $2 the counts in it. An ok row
-- came with its data and is never rewritten; nothing is returned then. When it began and ended is
-- told by the server's clock, for that of one host may be wrong, and what is newest decides for all.
WITH given AS (
    SELECT
        $1::jsonb AS told,
        clock_timestamp() AS now,
        make_interval(secs => coalesce(($1::jsonb ->> 'seconds')::float8, 0)) AS took
),

dated AS (
    SELECT told || jsonb_build_object(
        'started_at', now - took,
        'finished_at', CASE WHEN told ->> 'finished_at' IS NOT NULL THEN now END
    ) AS told
    FROM given
)

INSERT INTO etl.sync_runs AS r
SELECT (jsonb_populate_record(NULL::etl.sync_runs, dated.told)).*
FROM dated
ON CONFLICT (run_id, sync, shard) DO UPDATE SET
    status = excluded.status,
    finished_at = excluded.finished_at,
    mart_rows = excluded.mart_rows,
    mart_built_at = excluded.mart_built_at,
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
RETURNING (
    SELECT string_agg(c.key, ', ' ORDER BY c.key)
    FROM jsonb_each($2::jsonb) AS c
    WHERE to_jsonb(r) -> c.key IS DISTINCT FROM c.value
) AS lost -- counts that the table has no column for, or that are not set above
