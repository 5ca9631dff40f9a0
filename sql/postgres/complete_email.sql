-- Report mail $1, claimed by worker $2 at $3: $4 sent or not, $5 why not.
-- One that could not be sent waits for its next attempt (crm.email_retry_wait), or has failed when
-- there is none. "Sent" counts as long as nobody else has claimed the mail, whatever became of it
-- when the lease ran out. No row comes back when the mail is no longer this worker's.
UPDATE crm.email_queue
SET
    status = CASE
        WHEN $4::boolean THEN 'sent'
        WHEN crm.email_retry_wait(attempts) IS NOT NULL THEN 'pending'
        ELSE 'failed'
    END,
    reason = nullif($5, ''),
    sent_at = CASE WHEN $4::boolean THEN pg_catalog.clock_timestamp() END,
    not_before = CASE
        WHEN $4::boolean THEN not_before
        ELSE coalesce(
            pg_catalog.clock_timestamp() + crm.email_retry_wait(attempts), not_before
        )
    END,
    updated_at = pg_catalog.clock_timestamp()
WHERE
    id = $1
    AND worker = $2
    AND claimed_at = $3::timestamptz
    AND (
        status = 'processing'
        OR ($4::boolean AND status IN ('pending', 'failed', 'cancelled'))
    )
RETURNING id, status, attempts
