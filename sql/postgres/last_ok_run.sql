-- The last ok run of sync $1: how many rows its mart had, when it began, into how many shards the
-- mart was cut, what it warned of, and as JSON how many keys each of them wrote last.
SELECT
    r.mart_rows,
    r.shards,
    -- A run counts `unmapped` since it warns.
    CASE WHEN r.unmapped IS NOT NULL THEN coalesce(r.warning, '') END AS warning,
    (
        SELECT jsonb_object_agg(w.shard, w.written)::text
        FROM (
            SELECT DISTINCT ON (s.shard) s.shard, s.written
            FROM etl.sync_runs AS s
            WHERE s.sync = r.sync AND s.shards = r.shards AND s.status = 'ok'
                AND s.written IS NOT NULL AND s.started_at < now() + interval '1 hour'
            ORDER BY s.shard, s.started_at DESC
        ) AS w
    ) AS written,
    (
        SELECT min(s.started_at)
        FROM etl.sync_runs AS s
        WHERE s.run_id = r.run_id AND s.sync = r.sync AND s.status = 'ok'
    ) AS began_at
FROM etl.sync_runs AS r
-- No run is of the future: such a row, by hand or of an older version, would be the last for ever.
WHERE r.sync = $1 AND r.status = 'ok' AND r.started_at < now() + interval '1 hour'
ORDER BY r.started_at DESC
LIMIT 1
