-- How many mails email_triggers.sql was to write, did not, and nobody else is the reason: asked
-- when it tells of unwritten ones. A mail that a worker or another program took, changed or queued
-- since this transaction began is theirs, and what was to be written waits for a later run.
WITH unchanged AS (
    SELECT
    FROM pg_temp.changes AS c
    JOIN crm.email_queue AS q ON q.id = c.id
    WHERE
        q.status = 'pending'
        AND q.updated_at < now()
        AND (
            c.reason IS NOT NULL
            OR (q.priority, q.payload, q.expires_at)
            IS DISTINCT FROM (c.priority, c.payload, c.expires_at)
        )
    FOR NO KEY UPDATE OF q SKIP LOCKED
),

absent AS (
    SELECT
    FROM pg_temp.candidates AS c
    JOIN pg_temp.triggers AS t ON t.user_id = c.user_id
    LEFT JOIN crm.email_queue AS q
        ON q.user_id = t.user_id AND q.template = t.template AND q.episode_at = t.episode_at
    WHERE
        c.blocked_by IS NULL
        AND (q.id IS NULL OR q.status = 'cancelled' AND q.updated_at < now())
        AND NOT EXISTS (
            SELECT
            FROM crm.email_queue AS o
            WHERE
                o.user_id = t.user_id
                AND (o.status IN ('pending', 'processing') OR o.updated_at > now())
        )
)

SELECT (SELECT count(*) FROM unchanged) + (SELECT count(*) FROM absent) AS rows
