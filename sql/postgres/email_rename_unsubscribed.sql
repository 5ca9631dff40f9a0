-- Let unsubscribes from a former template hold for its new name; return how many are new. The rules were
-- told before, by email_settings.sql.
SELECT count(*) AS users
FROM jsonb_to_recordset(current_setting('searchflow.rules')::jsonb)
    AS r (template text, renamed_from text)
CROSS JOIN LATERAL crm.rename_email_suppressions(r.renamed_from, r.template) AS s
WHERE r.renamed_from IS NOT NULL
