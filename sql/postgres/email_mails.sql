-- What the queue holds that decisions go by (sql/warehouse/email_decisions.sql), said before by
-- email_settings.sql. Mails that ended are left out once no rule looks at them any more: their visit
-- is too old to come again, and cooldown and gap are over. A mail of a former template comes under its
-- new name, which email_rename.sql gives it at the end of the run.
WITH rules AS MATERIALIZED (
    SELECT
        named.name,
        told.template,
        make_interval(secs => told.max_age) AS max_age,
        make_interval(secs => told.cooldown) AS cooldown
    FROM jsonb_to_recordset(current_setting('searchflow.rules')::jsonb)
        AS told (template text, renamed_from text, max_age float8, cooldown float8)
    CROSS JOIN LATERAL (VALUES (told.template), (told.renamed_from)) AS named (name)
    WHERE named.name IS NOT NULL
),

settings AS MATERIALIZED (
    SELECT
        current_setting('searchflow.oldest')::timestamptz AS oldest,
        make_interval(secs => current_setting('searchflow.gap_hours')::float8 * 3600) AS gap
),

queue AS (
    SELECT * FROM crm.email_queue
    WHERE user_id = current_setting('searchflow.user')
    UNION ALL
    SELECT * FROM crm.email_queue
    WHERE
        current_setting('searchflow.user') = ''
        AND (
            current_setting('searchflow.shards')::int = 1
            OR etl.shard_of(user_id, current_setting('searchflow.shards')::int)
            = current_setting('searchflow.shard')::int
        )
),

mails AS (
    SELECT
        q.id,
        q.user_id,
        coalesce(r.template, q.template) AS template,
        q.episode_at,
        q.status,
        q.reason,
        q.priority,
        q.payload,
        q.attempts,
        q.expires_at,
        r.template IS NOT NULL AS is_ours,
        r.max_age,
        r.cooldown,
        s.oldest,
        s.gap,
        q.status IN ('processing', 'sent', 'failed') AS counts,
        coalesce(q.sent_at, q.created_at) AS mailed_at
    FROM queue AS q
    CROSS JOIN settings AS s
    LEFT JOIN rules AS r
        ON
            r.name = q.template
            AND (
                r.name = r.template
                -- Two mails of one visit keep their names.
                OR NOT EXISTS (
                    SELECT
                    FROM crm.email_queue AS n
                    WHERE
                        n.user_id = q.user_id
                        AND n.template = r.template
                        AND n.episode_at = q.episode_at
                )
            )
),

timed AS (
    SELECT
        *,
        episode_at + max_age AS new_expires_at,
        (expires_at IS DISTINCT FROM episode_at + max_age) AS is_outdated,
        coalesce(status = 'cancelled' AND reason = 'holdout', false) AS is_held_out,
        counts AND is_ours AND (cooldown IS NULL OR mailed_at > now() - cooldown) AS is_resting,
        counts AND mailed_at > now() - gap AS is_recent
    FROM mails
)

SELECT
    id,
    user_id,
    template,
    episode_at,
    status,
    priority,
    -- A provider that drops repeats expects the payload of the first attempt.
    CASE WHEN status = 'pending' AND is_ours AND attempts = 0 THEN payload::text END AS payload,
    new_expires_at AS expires_at,
    is_ours,
    is_outdated,
    is_held_out,
    is_resting,
    CASE WHEN is_resting THEN mailed_at + cooldown END AS rests_until,
    is_recent,
    CASE WHEN is_recent THEN mailed_at + gap END AS gap_until
FROM timed
WHERE
    status IN ('pending', 'processing')
    OR is_resting
    OR is_recent
    OR (is_ours AND episode_at >= oldest - max_age)
