-- Whether an allowlist keeps the user $1 from being mailed, which templates are paused, and whose daily
-- cap is reached.
SELECT
    EXISTS (SELECT FROM crm.email_allowlist)
    AND NOT EXISTS (SELECT FROM crm.email_allowlist AS a WHERE a.user_id = $1) AS not_on_allowlist,
    (
        SELECT coalesce(array_agg(template ORDER BY template), '{}')
        FROM crm.email_templates
        WHERE paused
    ) AS paused,
    (
        SELECT coalesce(array_agg(template ORDER BY template), '{}')
        FROM crm.email_templates
        WHERE daily_cap <= crm.email_cap_used(template)
    ) AS cap_reached
