-- Merge into crm.email_queue what email_candidates.sql and email_changes.sql staged, and count
-- what that did. $1 is the shard, $2 of how many.
-- Staged before: triggers, rules, candidates and changes.
--
-- Workers go on meanwhile. A mail they claimed since it was staged is theirs: it stays as it is,
-- and what was to take its place waits for a later run.
--
-- A status is asked for by array_position, of which the planner has no statistics: those of status
-- are the oldest just when many mails have come or gone, and a join planned for one row then
-- takes hours.
WITH
-- Claiming skips this lock, and completing does not wait for it: should a mail turn out to be a
-- worker's only when it is locked, the worker is not held up until this transaction ends.
lockable AS MATERIALIZED (
    SELECT
        q.id, c.reason, c.is_due, c.without_episode, c.priority, c.payload, c.expires_at
    FROM pg_temp.changes AS c
    JOIN crm.email_queue AS q ON q.id = c.id
    WHERE array_position('{pending}', q.status) > 0
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
        payload = CASE WHEN q.attempts = 0 THEN f.payload ELSE q.payload END,
        expires_at = f.expires_at,
        updated_at = now()
    FROM lockable AS f
    WHERE q.id = f.id AND array_position('{pending}', q.status) > 0 AND f.reason IS NULL
    RETURNING q.id, f.is_due, f.without_episode
),

-- A user's waiting mail must be cancelled before the next is queued, or the index email_queue_open
-- objects: reading `cancelled` here sees to the order.
approved AS MATERIALIZED (
    SELECT user_id, cancelled_id
    FROM pg_temp.candidates
    WHERE
        blocked_by IS NULL
        AND (waiting_id IS NULL OR waiting_id IN (SELECT id FROM cancelled))
),

inserted AS (
    INSERT INTO crm.email_queue (user_id, template, episode_at, priority, payload, expires_at)
    SELECT t.user_id, t.template, t.episode_at, t.priority, t.payload::jsonb, t.expires_at
    FROM approved AS a
    JOIN pg_temp.triggers AS t ON t.user_id = a.user_id
    WHERE a.cancelled_id IS NULL
    -- Another program may have queued a mail of its own for the user a moment ago.
    ON CONFLICT DO NOTHING
    RETURNING id
),

-- Recorded, so that what mails do can be measured against those who got none.
held_out AS (
    INSERT INTO crm.email_queue (
        user_id, template, episode_at, priority, payload, status, reason, expires_at
    )
    SELECT
        t.user_id, t.template, t.episode_at, t.priority, t.payload::jsonb, 'cancelled', 'holdout',
        t.expires_at
    FROM pg_temp.candidates AS c
    JOIN pg_temp.triggers AS t ON t.user_id = c.user_id
    WHERE c.blocked_by = 'holdout' AND c.cancelled_id IS NULL
    ON CONFLICT DO NOTHING
),

revived AS (
    UPDATE crm.email_queue AS q
    SET
        status = 'pending',
        reason = NULL,
        priority = t.priority,
        payload = CASE WHEN q.attempts = 0 THEN t.payload::jsonb ELSE q.payload END,
        expires_at = t.expires_at,
        updated_at = now()
    FROM approved AS a
    JOIN pg_temp.triggers AS t ON t.user_id = a.user_id
    WHERE q.id = a.cancelled_id AND array_position('{cancelled}', q.status) > 0
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
        (SELECT count(*) FROM pg_temp.triggers WHERE due) AS due,
        (SELECT count(*) FROM pg_temp.triggers WHERE episode_at IS NULL) AS without_episode,
        (SELECT count(*) FROM pg_temp.candidates) AS candidates,
        (SELECT count(*) FROM pg_temp.candidates WHERE blocked_by = 'suppressed') AS suppressed,
        (SELECT count(*) FROM lockable) AS lockable,
        (SELECT count(*) FROM approved) AS approved,
        (SELECT count(*) FROM inserted) AS inserted,
        (SELECT count(*) FROM revived) AS revived,
        (SELECT count(*) FROM refreshed) AS refreshed,
        (SELECT count(*) FROM refreshed WHERE is_due) AS refreshed_due,
        (SELECT count(*) FROM refreshed WHERE without_episode) AS refreshed_without_episode,
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
        JOIN pg_temp.rules AS r ON r.template = this_shard.template
        WHERE this_shard.status = 'pending'
    ) ELSE 0 END AS pending,
    CASE WHEN inserted + revived > 0 THEN (
        -- More than a few is all there is to know.
        SELECT count(*) FROM (SELECT FROM this_shard LIMIT 10000) AS few
    ) ELSE 0 END AS queue_rows
FROM totals
