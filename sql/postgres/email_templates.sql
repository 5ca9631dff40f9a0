-- Make crm.email_templates know the templates of the rules $1 (a JSON list of {template, cooldown,
-- renamed_from}, the cooldown in seconds) and $2, the hours between any two mails to a user; return
-- those that are new. What people set stays: a renamed template takes it over.
WITH rules AS (
    SELECT
        template,
        renamed_from,
        make_interval(secs => cooldown) AS cooldown,
        make_interval(secs => $2::float8 * 3600) AS min_gap
    FROM jsonb_to_recordset($1::jsonb)
        AS told (template text, cooldown float8, renamed_from text)
),

-- Nobody waits: a row that another session changes just now is brought up by the next run.
changed AS MATERIALIZED (
    SELECT t.template, r.cooldown, r.min_gap
    FROM crm.email_templates AS t
    JOIN rules AS r ON r.template = t.template
    WHERE (t.cooldown, t.min_gap) IS DISTINCT FROM (r.cooldown, r.min_gap)
    FOR NO KEY UPDATE OF t SKIP LOCKED
),

updated AS (
    UPDATE crm.email_templates AS t
    SET cooldown = c.cooldown, min_gap = c.min_gap
    FROM changed AS c
    WHERE t.template = c.template
)

INSERT INTO crm.email_templates (template, paused, daily_cap, cooldown, min_gap)
SELECT r.template, coalesce(o.paused, false), o.daily_cap, r.cooldown, r.min_gap
FROM rules AS r
LEFT JOIN crm.email_templates AS o ON o.template = r.renamed_from
WHERE NOT EXISTS (SELECT FROM crm.email_templates AS t WHERE t.template = r.template)
ON CONFLICT DO NOTHING
RETURNING template
