-- Who must not be mailed, and which templates ('*' stands for all of them); said before by
-- email_settings.sql: which user, none for all.
SELECT user_id, array_agg(template) AS templates
FROM crm.email_suppressions
WHERE current_setting('searchflow.user') IN ('', user_id)
GROUP BY user_id
