-- How many mails crm.email_queue does not hold as email_triggers.sql has just written them. They are
-- looked for only where the table has triggers, which may change or delete what RETURNING answered.
-- What this transaction wrote is updated at its now(), and nobody else can change it yet.
WITH has_triggers AS (
    SELECT count(*) > 0 AS yes
    FROM pg_catalog.pg_trigger AS t
    WHERE
        t.tgrelid IN (
            SELECT 'crm.email_queue'::regclass
            UNION
            SELECT relid FROM pg_partition_tree('crm.email_queue'::regclass)
        )
        AND NOT t.tgisinternal
        AND t.tgenabled <> 'D'
)

SELECT count(*) AS rows
FROM pg_temp.decisions AS d
LEFT JOIN crm.email_queue AS q
    ON q.user_id = d.user_id AND q.template = d.template AND q.episode_at = d.episode_at
LEFT JOIN crm.email_queue AS w ON w.id = d.waiting_id
WHERE
    (SELECT h.yes FROM has_triggers AS h)
    AND (
        (d.reason IS NOT NULL AND w.updated_at = now() AND w.status <> 'cancelled')
        OR (d.is_held_out AND q.id IS NULL)
        OR (
            d.is_queued
            AND CASE
                WHEN q.updated_at = now() THEN
                    (q.status, q.priority) IS DISTINCT FROM ('pending', d.priority)
                WHEN q.id IS NULL THEN NOT EXISTS (
                    -- Of somebody else, who was faster.
                    SELECT FROM crm.email_queue AS o
                    WHERE
                        o.user_id = d.user_id
                        AND (o.status IN ('pending', 'processing') OR o.updated_at > now())
                )
            END
        )
    )
