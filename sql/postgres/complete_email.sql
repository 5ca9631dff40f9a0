-- Report mail $1, claimed by worker $2 at $3: $4 sent or not, $5 why not.
-- One that could not be sent waits again, until its fifth attempt. No row comes back when the
-- mail is no longer this worker's: the lease ran out, and somebody else may have it.
UPDATE crm.email_queue
SET
    status = CASE WHEN $4::boolean THEN 'sent' WHEN attempts < 5 THEN 'pending' ELSE 'failed' END,
    reason = nullif($5, ''),
    sent_at = CASE WHEN $4::boolean THEN pg_catalog.clock_timestamp() END,
    updated_at = pg_catalog.clock_timestamp()
WHERE id = $1 AND status = 'processing' AND worker = $2 AND claimed_at = $3::timestamptz
RETURNING id, status, attempts
