-- Who must not be mailed, and which templates ('*' stands for all of them); said before by
-- email_settings.sql: the rules, and which user, none for all. Who unsubscribed from a former template
-- has done so under its new name.
SELECT
    s.user_id,
    array_agg(s.template)
    || coalesce(array_agg(r.template) FILTER (WHERE r.template IS NOT NULL), '{}') AS templates
FROM crm.email_suppressions AS s
LEFT JOIN
    jsonb_to_recordset(current_setting('searchflow.rules')::jsonb)
        AS r (template text, renamed_from text)
    ON r.renamed_from = s.template
WHERE current_setting('searchflow.user') IN ('', s.user_id)
GROUP BY s.user_id
