-- Drop mails that ended more than $1 days ago and that no later sync looks for; return how
-- many, and how many were due.
-- A mart that went through with --force, however old, may come again: see etl.sync_runs.
-- Where the last sync had a longer cooldown or gap (crm.email_templates), that counts.
-- $2 the rules, a JSON list of {template, max_age, cooldown} in seconds; $3 hours between any
-- two mails to a user; $4 hours that a mart may be old.
-- A sync looks for a mail for as long as its episode can come again, which is until a mart that
-- may be that old calls it too old (never, where users have one episode for ever: its moment is
-- yet to come); and, unless cancelled, for as long as the cooldown of its template (null: for
-- ever) and the gap go on. A mail of a template without a rule is not ours.
WITH rules AS (
    SELECT
        told.template,
        make_interval(secs => told.max_age) AS max_age,
        CASE
            WHEN told.cooldown IS NOT NULL AND (t.template IS NULL OR t.cooldown IS NOT NULL)
                THEN greatest(make_interval(secs => told.cooldown), t.cooldown)
        END AS cooldown,
        greatest(make_interval(secs => $3::float8 * 3600), t.min_gap) AS min_gap
    FROM jsonb_to_recordset($2::jsonb) AS told (template text, max_age float8, cooldown float8)
    LEFT JOIN crm.email_templates AS t ON t.template = told.template
),

oldest_mart AS (
    SELECT
        least(now() - make_interval(secs => $4::float8 * 3600), min(mart_built_at)) AS built_at
    FROM etl.sync_runs
    WHERE sync = 'email_triggers' AND status = 'ok' AND forced
),

due AS MATERIALIZED (
    SELECT q.id
    FROM crm.email_queue AS q
    JOIN rules AS r ON r.template = q.template
    CROSS JOIN oldest_mart AS o
    WHERE
        q.status IN ('sent', 'failed', 'cancelled')
        AND greatest(q.sent_at, q.updated_at) < now() - make_interval(secs => $1::float8 * 86400)
        AND q.episode_at < o.built_at - r.max_age
        AND (
            q.status = 'cancelled'
            OR (
                coalesce(q.sent_at, q.created_at) < now() - r.cooldown
                AND coalesce(q.sent_at, q.created_at)
                < now() - r.min_gap
            )
        )
),

dropped AS (
    DELETE FROM crm.email_queue AS q
    USING due AS d
    WHERE q.id = d.id AND q.status IN ('sent', 'failed', 'cancelled')
    RETURNING q.template, q.created_at, q.status, q.reason, q.sent_at
),

-- For crm.email_report, as crm.email_weekly_counts has them.
kept AS (
    INSERT INTO crm.email_counts AS c (template, week, status, reason, mails)
    SELECT
        template,
        date_trunc('week', created_at AT TIME ZONE 'UTC')::date,
        status,
        CASE status
            WHEN 'cancelled' THEN coalesce(reason, '')
            WHEN 'sent' THEN coalesce(
                to_char(date_trunc('week', sent_at AT TIME ZONE 'UTC'), 'YYYY-MM-DD'), ''
            )
            ELSE ''
        END,
        count(*)
    FROM dropped
    GROUP BY 1, 2, 3, 4
    ON CONFLICT (template, week, status, reason) DO UPDATE SET mails = c.mails + excluded.mails
)

SELECT
    (SELECT count(*) FROM dropped) AS rows,
    (SELECT count(*) FROM due) AS due
