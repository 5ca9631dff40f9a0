-- Record that a mail of template $2 was sent to user $1 at $3 (null: now) without the queue, so that
-- cooldown and gap know of it. Returns the id; no row: it was recorded before.
SELECT crm.record_sent_email($1, $2, coalesce($3::timestamptz, pg_catalog.clock_timestamp())) AS id
