-- Take up to $1 waiting mails for worker $2: the most urgent first, then the oldest.
-- Mails of suppressed users are passed over, and so is what somebody else is taking just now.
WITH next AS MATERIALIZED (
    SELECT q.id
    FROM crm.email_queue AS q
    WHERE
        q.status = 'pending'
        -- OFFSET 0 keeps this a look-up per mail: the planner might read all suppressions.
        AND NOT EXISTS (
            SELECT FROM crm.email_suppressions AS s WHERE s.user_id = q.user_id OFFSET 0
        )
    ORDER BY q.priority, q.created_at, q.id
    LIMIT $1::bigint
    FOR UPDATE OF q SKIP LOCKED
),

claimed AS (
    UPDATE crm.email_queue AS q
    SET
        status = 'processing',
        worker = $2,
        -- In milliseconds, as a driver may not hand back more; see complete_email.sql.
        claimed_at = pg_catalog.date_trunc('milliseconds', pg_catalog.clock_timestamp()),
        updated_at = pg_catalog.clock_timestamp(),
        attempts = q.attempts + 1,
        reason = NULL
    FROM next
    WHERE q.id = next.id
    RETURNING q.*
)

SELECT id, user_id, template, episode_at, priority, payload, attempts, worker, claimed_at
FROM claimed
ORDER BY priority, created_at, id
