-- Stage the candidates: fresh occasions that are not in the queue, or were taken back before they
-- were sent, each with what speaks against queueing it (nothing: null).
-- $1 hours between any two mails to a user; $2 the visit of a mart without visits;
-- $3 the part of the users who are held out.
-- Staged before: triggers (one row per user whose segment calls for a mail), rules (one row a
-- template, times in seconds).
CREATE TEMPORARY TABLE pg_temp.candidates ON COMMIT DROP AS
WITH fresh AS (
    SELECT t.user_id, t.template, t.episode_at, q.id AS cancelled_id
    FROM pg_temp.triggers AS t
    LEFT JOIN crm.email_queue AS q
        ON q.user_id = t.user_id AND q.template = t.template AND q.episode_at = t.episode_at
    WHERE t.due AND (
        q.id IS NULL
        -- Who was held out of a visit's mail stays so, whatever the setting says later.
        OR (q.status = 'cancelled' AND q.reason IS DISTINCT FROM 'holdout')
    )
)

SELECT
    f.user_id,
    f.template,
    f.cancelled_id,
    h.waiting_id,
    CASE
        WHEN EXISTS (
            SELECT
            FROM crm.email_suppressions AS s
            WHERE s.user_id = f.user_id AND s.template IN ('*', f.template)
        ) THEN 'suppressed'
        WHEN h.blocks_new THEN 'open'
        WHEN r.cooldown IS NULL AND h.last_same IS NOT NULL THEN 'cooldown' -- never again
        WHEN h.last_same > now() - make_interval(secs => r.cooldown) THEN 'cooldown'
        WHEN h.last_mail > now() - make_interval(secs => $1 * 3600) THEN 'gap'
        WHEN
            $3::float8 > 0
            -- Salted, so that it has nothing to do with the hash of shards.
            AND ('x' || left(encode(sha256(convert_to(
                'holdout' || f.template || chr(31) || f.user_id, 'UTF8'
            )), 'hex'), 8))::bit(32)::bigint < $3::float8 * 4294967296
            THEN 'holdout'
    END AS blocked_by
FROM fresh AS f
JOIN pg_temp.rules AS r ON r.template = f.template
-- What else the user has in the queue. One look into its index a candidate, whatever the planner
-- believes of their number.
CROSS JOIN LATERAL (
    SELECT
        max(q.id) FILTER (WHERE q.status = 'pending') AS waiting_id, -- there is one at most
        bool_or(
            q.status = 'processing'
            -- One that waits gives way, unless it is not ours to take back.
            OR q.status = 'pending' AND q.template NOT IN (SELECT template FROM pg_temp.rules)
        ) AS blocks_new,
        bool_or(
            q.status = 'pending'
            AND q.template = f.template
            AND q.episode_at > f.episode_at
            AND q.episode_at <> $2::timestamptz
        ) AS moved_back,
        max(coalesce(q.sent_at, q.created_at)) FILTER (WHERE q.status <> 'pending') AS last_mail,
        max(coalesce(q.sent_at, q.created_at)) FILTER (
            WHERE q.status <> 'pending' AND q.template = f.template
        ) AS last_same
    FROM crm.email_queue AS q
    WHERE q.user_id = f.user_id AND q.status <> 'cancelled'
) AS h
-- The visit moved back: the waiting mail is about it, and keeps up.
WHERE h.moved_back IS NOT true
