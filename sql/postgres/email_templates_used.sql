-- The templates of mails that wait or were sent, by one look into an index for each, and those that
-- people can pause.
WITH RECURSIVE waiting AS (
    (
        SELECT q.template
        FROM crm.email_queue AS q
        WHERE q.status = 'pending'
        ORDER BY q.template
        LIMIT 1
    )
    UNION ALL
    SELECT n.template
    FROM waiting AS w
    CROSS JOIN LATERAL (
        SELECT q.template
        FROM crm.email_queue AS q
        WHERE q.status = 'pending' AND q.template > w.template
        ORDER BY q.template
        LIMIT 1
    ) AS n
),

sent AS (
    (
        SELECT q.template
        FROM crm.email_queue AS q
        WHERE q.sent_at IS NOT NULL
        ORDER BY q.template
        LIMIT 1
    )
    UNION ALL
    SELECT n.template
    FROM sent AS s
    CROSS JOIN LATERAL (
        SELECT q.template
        FROM crm.email_queue AS q
        WHERE q.sent_at IS NOT NULL AND q.template > s.template
        ORDER BY q.template
        LIMIT 1
    ) AS n
)

SELECT template FROM waiting
UNION
SELECT template FROM sent
UNION
SELECT template FROM crm.email_templates
