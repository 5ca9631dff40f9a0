-- Stage the changes to waiting mails: those to cancel, with the reason, and those that stay
-- (reason null) but say something else now.
-- $1 the mart's build time; $2 shard, $3 of how many.
-- Staged before: triggers, rules, candidates. Whose user has no trigger counts as `left_mart`
-- until email_reclassify.sql corrects that. A template that is not in the rules is somebody else's.
CREATE TEMPORARY TABLE pg_temp.changes ON COMMIT DROP AS
WITH waiting AS (
    SELECT
        q.id,
        q.template,
        q.user_id,
        CASE
            WHEN s.user_id IS NOT NULL THEN 'suppressed'
            WHEN c.user_id IS NOT NULL THEN 'superseded'
            WHEN q.episode_at < $1::timestamptz - make_interval(secs => r.max_age) THEN 'expired'
            WHEN t.user_id IS NULL THEN 'left_mart'
            WHEN t.template <> q.template THEN 'left_segment'
        END AS reason,
        coalesce(t.due AND t.template = q.template AND t.episode_at = q.episode_at, false)
            AS is_due,
        q.priority AS old_priority,
        q.payload AS old_payload,
        t.priority,
        t.payload::jsonb AS payload
    FROM crm.email_queue AS q
    JOIN pg_temp.rules AS r ON r.template = q.template
    LEFT JOIN pg_temp.triggers AS t ON t.user_id = q.user_id
    LEFT JOIN pg_temp.candidates AS c ON c.waiting_id = q.id AND c.blocked_by IS NULL
    LEFT JOIN crm.email_suppressions AS s ON s.user_id = q.user_id
    WHERE
        q.status = 'pending'
        AND (
            $3::int = 1
            OR etl.shard_of(q.user_id, $3::int) = $2::int
        )
)

SELECT id, template, user_id, reason, is_due, priority, payload
FROM waiting
WHERE
    reason IS NOT NULL
    OR (is_due AND (priority <> old_priority OR payload <> old_payload))
