-- Give back the mails that workers have held for more than $1 seconds: the lease ran out.
-- They wait for their next attempt (crm.email_retry_wait), or have failed when there is none.
WITH stale AS MATERIALIZED (
    SELECT id
    FROM crm.email_queue
    WHERE
        status = 'processing'
        AND claimed_at < pg_catalog.now() - pg_catalog.make_interval(secs => $1)
    FOR UPDATE SKIP LOCKED
)

UPDATE crm.email_queue AS q
SET
    status = CASE
        WHEN crm.email_retry_wait(q.attempts) IS NOT NULL THEN 'pending' ELSE 'failed'
    END,
    reason = 'lease ran out',
    not_before = coalesce(
        pg_catalog.clock_timestamp() + crm.email_retry_wait(q.attempts), q.not_before
    ),
    updated_at = pg_catalog.clock_timestamp()
FROM stale
WHERE q.id = stale.id
RETURNING q.id, q.user_id, q.template, q.status, q.attempts, q.worker
