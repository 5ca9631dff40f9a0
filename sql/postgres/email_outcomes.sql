-- Tell what becomes of each occasion and each waiting mail: how many by template and outcome, and
-- five of the users. Each word is
-- explained in docs/email-queue.md. Staged before: triggers, candidates and changes.
WITH outcomes AS (
    SELECT
        t.template,
        t.user_id,
        CASE
            WHEN w.id IS NOT NULL THEN 'refreshed'
            WHEN t.episode_at IS NULL THEN 'held back: no episode'
            WHEN NOT t.due THEN 'old news'
            WHEN c.blocked_by = 'suppressed' THEN 'suppressed'
            WHEN c.blocked_by IS NOT NULL THEN 'held back: ' || c.blocked_by
            WHEN c.cancelled_id IS NOT NULL THEN 'pending again'
            WHEN c.user_id IS NOT NULL THEN 'queued'
            WHEN q.status = 'processing' THEN 'being sent'
            WHEN q.status IN ('sent', 'failed') THEN q.status
            WHEN q.status = 'cancelled' THEN 'held out'
            ELSE 'waiting'
        END AS outcome
    FROM pg_temp.triggers AS t
    LEFT JOIN pg_temp.candidates AS c ON c.user_id = t.user_id
    LEFT JOIN pg_temp.changes AS w ON w.user_id = t.user_id AND w.reason IS NULL
    LEFT JOIN crm.email_queue AS q
        ON q.user_id = t.user_id AND q.template = t.template AND q.episode_at = t.episode_at
    WHERE NOT EXISTS (
        SELECT
        FROM pg_temp.changes AS x
        WHERE x.user_id = t.user_id AND x.is_due AND x.reason IS NOT NULL
    )
    UNION ALL
    SELECT template, user_id, 'cancelled: ' || reason
    FROM pg_temp.changes
    WHERE reason IS NOT NULL
)

SELECT
    template,
    outcome,
    count(*) AS mails,
    (array_agg(user_id ORDER BY user_id))[:5] AS users
FROM outcomes
GROUP BY template, outcome
ORDER BY template, outcome
