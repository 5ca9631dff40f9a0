-- Every mail of the user $1, the newest first; of one that waits, as `rests`, why a claim now would not
-- hand it out, and until when. Of a template with a daily cap: how many that leaves today, and how many
-- mails of it are due before this one, up to 1,000.
SELECT
    q.template,
    q.status,
    q.reason,
    q.priority,
    q.attempts,
    q.episode_at,
    q.created_at,
    q.updated_at,
    q.claimed_at,
    q.sent_at,
    nullif(q.not_before, 'epoch') AS not_before,
    -- Null: never. The one occasion of a mart without visits is of the year 9999.
    CASE WHEN q.expires_at < '9999-01-01' THEN q.expires_at END AS expires_at,
    w.reason AS rests,
    w.until AS rests_until,
    t.daily_cap,
    CASE WHEN t.daily_cap IS NOT NULL THEN greatest(t.daily_cap - crm.email_cap_used(t.template), 0) END
        AS cap_left,
    CASE WHEN t.daily_cap IS NOT NULL THEN (
        SELECT count(*)
        FROM (
            SELECT
            FROM crm.email_queue AS o
            WHERE
                o.status = 'pending'
                AND o.template = q.template
                AND o.not_before <= now()
                AND (o.priority, o.not_before, o.created_at, o.id)
                < (q.priority, q.not_before, q.created_at, q.id)
            LIMIT 1000
        ) AS few
    ) END AS due_before
FROM crm.email_queue AS q
-- The collation is that of the index.
LEFT JOIN crm.email_waiting() AS w ON w.id = q.id AND w.user_id COLLATE "C" = $1
LEFT JOIN crm.email_templates AS t ON t.template = q.template AND q.status = 'pending'
WHERE q.user_id = $1
ORDER BY q.created_at DESC, q.id DESC
