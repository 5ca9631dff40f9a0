-- How many users the allowlist has (0: it is off), and which templates are paused or capped.
SELECT
    (SELECT count(*) FROM crm.email_allowlist) AS allowlist,
    (
        SELECT string_agg(template, ', ' ORDER BY template)
        FROM crm.email_templates
        WHERE paused
    ) AS paused,
    (
        SELECT string_agg(template || ' ' || daily_cap, ', ' ORDER BY template)
        FROM crm.email_templates
        WHERE daily_cap IS NOT NULL
    ) AS daily_caps
