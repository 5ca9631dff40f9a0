-- Give this shard's mails of a former template its new name: if $1 those that a worker has, else all
-- others; one that a worker is changing just now follows at the next run. The rules and the shard were
-- told before, by email_settings.sql.
UPDATE crm.email_queue AS q
SET template = f.template
FROM (
    SELECT o.id, r.template
    FROM crm.email_queue AS o
    JOIN jsonb_to_recordset(current_setting('searchflow.rules')::jsonb)
        AS r (template text, renamed_from text)
        ON r.renamed_from = o.template
    WHERE
        (o.status = 'processing') = $1::boolean
        AND (
            current_setting('searchflow.shards')::int = 1
            OR etl.shard_of(o.user_id, current_setting('searchflow.shards')::int)
            = current_setting('searchflow.shard')::int
        )
        -- As in email_mails.sql, which decisions go by.
        AND NOT EXISTS (
            SELECT
            FROM crm.email_queue AS n
            WHERE
                n.user_id = o.user_id
                AND n.template = r.template
                AND n.episode_at = o.episode_at
        )
    FOR NO KEY UPDATE OF o SKIP LOCKED
) AS f
WHERE q.id = f.id
