-- How many mails email_triggers.sql was to write, did not, and nobody else is the reason: asked
-- when it tells of unwritten ones. A mail that a worker or another program took, changed or queued
-- since this transaction began is theirs, and what was to be written waits for a later run.
WITH unchanged AS (
    SELECT
    FROM pg_temp.decisions AS d
    JOIN crm.email_queue AS q ON q.id = d.waiting_id
    WHERE
        q.status = 'pending'
        AND q.updated_at < now()
        AND (
            d.reason IS NOT NULL
            OR (
                d.is_refreshed
                AND (q.priority, q.payload, q.expires_at)
                IS DISTINCT FROM (d.priority, d.payload::jsonb, d.waiting_expires_at)
            )
        )
    FOR NO KEY UPDATE OF q SKIP LOCKED
),

absent AS (
    SELECT
    FROM pg_temp.decisions AS d
    LEFT JOIN crm.email_queue AS q
        ON q.user_id = d.user_id AND q.template = d.template AND q.episode_at = d.episode_at
    WHERE
        d.is_queued
        AND (q.id IS NULL OR q.status = 'cancelled' AND q.updated_at < now())
        AND NOT EXISTS (
            SELECT
            FROM crm.email_queue AS o
            WHERE
                o.user_id = d.user_id
                AND (o.status IN ('pending', 'processing') OR o.updated_at > now())
        )
)

SELECT (SELECT count(*) FROM unchanged) + (SELECT count(*) FROM absent) AS rows
