-- Whether an allowlist keeps the user $1 from being mailed, and which templates are paused.
SELECT
    EXISTS (SELECT FROM crm.email_allowlist)
    AND NOT EXISTS (SELECT FROM crm.email_allowlist AS a WHERE a.user_id = $1) AS not_on_allowlist,
    (
        SELECT coalesce(array_agg(template ORDER BY template), '{}')
        FROM crm.email_templates
        WHERE paused
    ) AS paused
