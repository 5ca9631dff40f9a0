-- Stage the changes to waiting mails: those to cancel, with the reason, and those that stay
-- (reason null) but say something else now.
-- $1 the mart's build time; $2 shard, $3 of how many; $4 the visit of a mart without visits.
-- Staged before: triggers, rules, candidates. Whose user has no trigger counts as `left_mart`
-- until email_reclassify.sql corrects that. A template that is not in the rules is somebody else's.
CREATE TEMPORARY TABLE pg_temp.changes ON COMMIT DROP AS
WITH waiting AS (
    SELECT
        q.id,
        q.template,
        q.user_id,
        CASE
            WHEN EXISTS (
                SELECT
                FROM crm.email_suppressions AS s
                WHERE s.user_id = q.user_id AND s.template IN ('*', q.template)
            ) THEN 'suppressed'
            WHEN c.user_id IS NOT NULL THEN 'superseded'
            WHEN q.episode_at < $1::timestamptz - make_interval(secs => r.max_age) THEN 'expired'
            WHEN t.user_id IS NULL THEN 'left_mart'
            WHEN t.template <> q.template THEN 'left_segment'
            WHEN
                q.episode_at = $4::timestamptz AND (t.episode_at IS DISTINCT FROM q.episode_at)
                THEN 'unknown_visit'
        END AS reason,
        -- The trigger's own mail, though its visit moved back since.
        coalesce(
            t.due
            AND t.template = q.template
            AND t.episode_at <= q.episode_at
            AND (t.episode_at = q.episode_at OR q.episode_at <> $4::timestamptz),
            false
        ) AS is_due,
        -- Rule 3, also of a visit that moved back or became unknown; a later one is another mail's.
        t.template = q.template AND (t.episode_at IS NULL OR t.episode_at <= q.episode_at)
            AS keeps_up,
        t.episode_at IS NULL AS without_episode,
        q.priority AS old_priority,
        q.payload AS old_payload,
        q.expires_at AS old_expires_at,
        t.priority,
        -- A provider that drops repeats expects the payload of the first attempt.
        CASE WHEN q.attempts = 0 THEN t.payload::jsonb ELSE q.payload END AS payload,
        q.episode_at + make_interval(secs => r.max_age) AS expires_at
    FROM crm.email_queue AS q
    JOIN pg_temp.rules AS r ON r.template = q.template
    LEFT JOIN pg_temp.triggers AS t ON t.user_id = q.user_id
    LEFT JOIN pg_temp.candidates AS c ON c.waiting_id = q.id AND c.blocked_by IS NULL
    WHERE
        q.status = 'pending'
        AND (
            $3::int = 1
            OR etl.shard_of(q.user_id, $3::int) = $2::int
        )
)

SELECT id, template, user_id, reason, is_due, without_episode, priority, payload, expires_at
FROM waiting
WHERE
    reason IS NOT NULL
    OR (
        keeps_up
        AND (
            priority <> old_priority
            OR payload <> old_payload
            OR expires_at IS DISTINCT FROM old_expires_at
        )
    )
