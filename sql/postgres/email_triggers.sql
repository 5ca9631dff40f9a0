-- Merge into crm.email_queue what was decided (sql/warehouse/email_decisions.sql), and count what that
-- did.
-- $1: the shard
-- $2: of how many shards
-- $3: how many occasions are fresh
-- $4: how many of $3 have no mail in the queue
-- $5: how many of $4 are suppressed
-- $6: how many occasions have a visit that nobody knows
-- $7: whether new mails go by a plain INSERT, which costs less than ON CONFLICT, but ends in a unique
--     violation when another program has just queued a mail of its own for one of the users
-- Staged before: decisions, one row a user for whom something changes.
--
-- Workers go on meanwhile. A mail they claimed since it was read is theirs: it stays as it is, and
-- what was to take its place waits for a later run.
--
-- A status is asked for by array_position, of which the planner has no statistics: those of status
-- are the oldest just when many mails have come or gone, and a join planned for one row then
-- takes hours.
WITH
-- Claiming skips this lock, and completing does not wait for it: should a mail turn out to be a
-- worker's only when it is locked, the worker is not held up until this transaction ends.
lockable AS MATERIALIZED (
    SELECT
        q.id, d.reason, d.is_due, d.is_without_episode, d.priority, d.payload, d.waiting_expires_at
    FROM pg_temp.decisions AS d
    JOIN crm.email_queue AS q ON q.id = d.waiting_id
    WHERE
        (d.reason IS NOT NULL OR d.is_refreshed)
        AND array_position('{pending}', q.status) > 0
    FOR KEY SHARE OF q SKIP LOCKED
),

cancelled AS (
    UPDATE crm.email_queue AS q
    SET status = 'cancelled', reason = f.reason, updated_at = now()
    FROM lockable AS f
    WHERE q.id = f.id AND array_position('{pending}', q.status) > 0 AND f.reason IS NOT NULL
    RETURNING q.id, f.reason, f.is_due
),

refreshed AS (
    UPDATE crm.email_queue AS q
    SET
        priority = f.priority,
        payload = CASE WHEN q.attempts = 0 THEN f.payload::jsonb ELSE q.payload END,
        expires_at = f.waiting_expires_at,
        updated_at = now()
    FROM lockable AS f
    WHERE q.id = f.id AND array_position('{pending}', q.status) > 0 AND f.reason IS NULL
    RETURNING q.id, f.is_due, f.is_without_episode
),

approved AS NOT MATERIALIZED (
    SELECT *
    FROM pg_temp.decisions
    WHERE
        is_queued
        -- The user's waiting mail must be cancelled before the next is queued, or the index
        -- email_queue_open objects: reading `cancelled` here sees to the order.
        AND (waiting_id IS NULL OR waiting_id IN (SELECT id FROM cancelled))
),

added AS (
    INSERT INTO crm.email_queue (user_id, template, episode_at, priority, payload, expires_at)
    SELECT user_id, template, episode_at, priority, payload::jsonb, expires_at
    FROM approved
    WHERE $7::boolean AND revived_id IS NULL
    RETURNING 1
),

added_beside_others AS (
    INSERT INTO crm.email_queue (user_id, template, episode_at, priority, payload, expires_at)
    SELECT user_id, template, episode_at, priority, payload::jsonb, expires_at
    FROM approved
    WHERE NOT $7::boolean AND revived_id IS NULL
    ON CONFLICT DO NOTHING
    RETURNING 1
),

-- Recorded, so that what mails do can be measured against those who got none.
held_out AS (
    INSERT INTO crm.email_queue (
        user_id, template, episode_at, priority, payload, status, reason, expires_at
    )
    SELECT
        user_id, template, episode_at, priority, payload::jsonb, 'cancelled', 'holdout', expires_at
    FROM pg_temp.decisions
    WHERE is_held_out
    ON CONFLICT DO NOTHING
),

revived AS (
    UPDATE crm.email_queue AS q
    SET
        status = 'pending',
        reason = NULL,
        priority = d.priority,
        payload = CASE WHEN q.attempts = 0 THEN d.payload::jsonb ELSE q.payload END,
        expires_at = d.expires_at,
        updated_at = now()
    FROM approved AS d
    WHERE
        q.id = d.revived_id
        AND array_position('{cancelled}', q.status) > 0
    RETURNING q.id
),

-- The queue's part for this shard.
this_shard AS NOT MATERIALIZED (
    SELECT *
    FROM crm.email_queue
    WHERE
        $2::int = 1
        OR etl.shard_of(user_id, $2::int) = $1::int
),

totals AS (
    SELECT
        $3::bigint AS due,
        $4::bigint AS candidates,
        $5::bigint AS suppressed,
        $6::bigint AS without_episode,
        (SELECT count(*) FROM lockable) AS lockable,
        (SELECT count(*) FROM approved) AS approved,
        (SELECT count(*) FROM added) + (SELECT count(*) FROM added_beside_others) AS inserted,
        (SELECT count(*) FROM revived) AS revived,
        (SELECT count(*) FROM refreshed) AS refreshed,
        (SELECT count(*) FROM refreshed WHERE is_due) AS refreshed_due,
        (SELECT count(*) FROM refreshed WHERE is_without_episode) AS refreshed_without_episode,
        (SELECT count(*) FROM cancelled) AS cancelled,
        (SELECT count(*) FROM cancelled WHERE is_due) AS cancelled_due,
        (
            SELECT count(*) FROM cancelled
            WHERE reason NOT IN ('superseded', 'suppressed', 'unknown_visit')
        ) AS cancelled_by_mart
)

SELECT
    inserted,
    refreshed + revived AS updated,
    due - candidates - refreshed_due - cancelled_due AS unchanged,
    cancelled,
    suppressed,
    candidates - inserted - revived - suppressed + without_episode - refreshed_without_episode
        AS held_back,
    -- Somebody else was faster, or a trigger dropped it: see email_unwritten.sql.
    lockable + approved - cancelled - refreshed - inserted - revived AS unwritten,

    -- For the guards; what costs is counted only when it can matter.
    inserted + revived AS queued,
    cancelled_by_mart,
    CASE WHEN cancelled_by_mart > 0 THEN (
        SELECT count(*)
        FROM this_shard
        WHERE
            status = 'pending'
            AND template IN (
                SELECT unnest(ARRAY[told.template, told.renamed_from])
                FROM jsonb_to_recordset(current_setting('searchflow.rules')::jsonb)
                    AS told (template text, renamed_from text)
            )
    ) ELSE 0 END AS pending,
    CASE WHEN inserted + revived > 0 THEN (
        -- More than a few is all there is to know.
        SELECT count(*) FROM (SELECT FROM this_shard LIMIT 10000) AS few
    ) ELSE 0 END AS queue_rows
FROM totals
