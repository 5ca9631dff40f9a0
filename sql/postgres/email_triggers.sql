-- Merge the staged triggers into crm.email_queue and count what that did.
-- $1 the mart's build time; $2 hours between any two mails to a user; $3 shard, $4 of how many.
-- Staged: triggers (one row per user whose segment calls for a mail), others (all other users
-- of the mart; rejected: their row broke the contract), rules (one row a template, seconds).
WITH rules AS (
    SELECT
        template,
        make_interval(secs => max_age) AS max_age,
        make_interval(secs => cooldown) AS cooldown -- null: never again
    FROM pg_temp.rules
),

due AS MATERIALIZED (
    SELECT
        t.user_id,
        t.template,
        t.episode_at,
        t.priority,
        t.payload::jsonb AS payload,
        q.id,
        q.status,
        (q.priority, q.payload) IS DISTINCT FROM (t.priority, t.payload::jsonb) AS differs
    FROM pg_temp.triggers AS t
    LEFT JOIN crm.email_queue AS q
        ON q.user_id = t.user_id AND q.template = t.template AND q.episode_at = t.episode_at
    WHERE t.due
),

-- Waiting mails, each with what speaks against it. Templates that are not ours are left alone.
pending AS MATERIALIZED (
    SELECT
        q.id,
        q.user_id,
        q.template,
        CASE
            WHEN s.user_id IS NOT NULL THEN 'suppressed'
            WHEN q.episode_at < $1::timestamptz - r.max_age AND q.episode_at > 'epoch' THEN 'expired'
            WHEN t.user_id IS NULL AND o.user_id IS NULL THEN 'left_mart'
            WHEN o.rejected THEN NULL -- nobody knows which segment the user is in
            WHEN t.template IS DISTINCT FROM q.template THEN 'left_segment'
        END AS against
    FROM crm.email_queue AS q
    JOIN rules AS r ON r.template = q.template
    LEFT JOIN crm.email_suppressions AS s ON s.user_id = q.user_id
    LEFT JOIN pg_temp.triggers AS t ON t.user_id = q.user_id
    LEFT JOIN pg_temp.others AS o ON o.user_id = q.user_id
    WHERE
        q.status = 'pending'
        -- The hash of in_shard in sql/warehouse/session.sql.
        AND (
            $4::int = 1
            OR ('x' || substr(md5(q.user_id), 1, 8))::bit(32)::bigint % $4::int = $3::int
        )
),

-- Mails that are not in the queue, or were taken back before they were sent.
candidates AS MATERIALIZED (
    SELECT * FROM due WHERE id IS NULL OR status = 'cancelled'
),

-- What the queue holds of the candidates' users beside.
history AS MATERIALIZED (
    SELECT
        c.user_id,
        bool_or(q.status = 'processing') AS is_processing,
        -- One that waits gives way, unless it is of a later visit or not ours to take back.
        bool_or(
            q.status = 'pending'
            AND (
                q.template NOT IN (SELECT template FROM rules)
                OR (q.template = c.template AND q.episode_at > c.episode_at)
            )
        ) AS is_firm,
        max(q.id) FILTER (WHERE q.status = 'pending') AS waiting_id,
        max(coalesce(q.sent_at, q.created_at)) FILTER (WHERE q.status <> 'pending') AS last_mail,
        max(coalesce(q.sent_at, q.created_at)) FILTER (
            WHERE q.status <> 'pending' AND q.template = c.template
        ) AS last_same
    FROM candidates AS c
    JOIN crm.email_queue AS q ON q.user_id = c.user_id AND q.status <> 'cancelled'
    GROUP BY c.user_id
),

judged AS MATERIALIZED (
    SELECT
        c.*,
        h.waiting_id,
        CASE
            WHEN s.user_id IS NOT NULL THEN 'suppressed'
            WHEN h.is_processing OR h.is_firm THEN 'open'
            WHEN h.last_same > coalesce(now() - r.cooldown, '-infinity') THEN 'cooldown'
            WHEN h.last_mail > now() - make_interval(secs => $2 * 3600) THEN 'gap'
        END AS against
    FROM candidates AS c
    JOIN rules AS r ON r.template = c.template
    LEFT JOIN history AS h ON h.user_id = c.user_id
    LEFT JOIN crm.email_suppressions AS s ON s.user_id = c.user_id
),

doomed AS MATERIALIZED (
    SELECT
        p.id,
        p.template,
        p.user_id,
        CASE
            WHEN p.against IN ('suppressed', 'expired') OR j.user_id IS NULL THEN p.against
            ELSE 'superseded'
        END AS reason
    FROM pending AS p
    LEFT JOIN judged AS j ON j.waiting_id = p.id AND j.against IS NULL
    WHERE p.against IS NOT NULL OR j.user_id IS NOT NULL
),

stale AS MATERIALIZED (
    SELECT d.*
    FROM due AS d
    WHERE
        d.status = 'pending'
        AND d.differs
        AND NOT EXISTS (SELECT FROM doomed WHERE doomed.id = d.id)
),

-- Only what will change is locked, so that workers claim the rest meanwhile; what a worker
-- holds or has just claimed is not ours any more.
locked AS MATERIALIZED (
    SELECT q.id
    FROM crm.email_queue AS q
    WHERE
        q.status = 'pending'
        AND q.id IN (SELECT id FROM doomed UNION ALL SELECT id FROM stale)
    FOR UPDATE SKIP LOCKED
),

cancelled AS (
    UPDATE crm.email_queue AS q
    SET status = 'cancelled', reason = d.reason, updated_at = now()
    FROM doomed AS d
    JOIN locked AS l ON l.id = d.id
    WHERE q.id = d.id
    RETURNING q.id, q.reason
),

queued AS MATERIALIZED (
    SELECT j.*
    FROM judged AS j
    WHERE
        j.against IS NULL
        AND (j.waiting_id IS NULL OR j.waiting_id IN (SELECT id FROM locked))
),

refreshed AS MATERIALIZED (
    SELECT * FROM stale WHERE id IN (SELECT id FROM locked)
),

written AS (
    INSERT INTO crm.email_queue AS q (user_id, template, episode_at, priority, payload)
    SELECT user_id, template, episode_at, priority, payload
    FROM (
        SELECT user_id, template, episode_at, priority, payload FROM queued
        UNION ALL
        SELECT user_id, template, episode_at, priority, payload FROM refreshed
    ) AS mails
    -- Cancel first: a user has one open mail at most, and an index that says so.
    WHERE (SELECT count(*) FROM cancelled) >= 0
    ORDER BY user_id
    ON CONFLICT (user_id, template, episode_at) DO UPDATE SET
        priority = excluded.priority,
        payload = excluded.payload,
        status = 'pending',
        reason = NULL,
        updated_at = now()
    WHERE q.status IN ('pending', 'cancelled')
    RETURNING q.id
),

told AS (
    SELECT
        (SELECT count(*) FROM queued) AS queued,
        (SELECT count(*) FROM queued WHERE id IS NOT NULL) AS revived,
        (SELECT count(*) FROM refreshed) AS refreshed,
        (SELECT count(*) FROM cancelled) AS cancelled,
        (SELECT count(*) FROM judged WHERE against = 'suppressed') AS suppressed
)

SELECT
    queued - revived AS inserted,
    refreshed + revived AS updated,
    (SELECT count(*) FROM due WHERE id IS NOT NULL AND status <> 'cancelled')
    - refreshed
    - (SELECT count(*) FROM cancelled JOIN due ON due.id = cancelled.id) AS unchanged,
    cancelled,
    suppressed,
    (SELECT count(*) FROM candidates) - queued - suppressed
    + (SELECT count(*) FROM pg_temp.triggers WHERE episode_at IS NULL) AS held_back,
    -- For the guards.
    queued,
    (SELECT count(*) FROM pending) AS pending,
    (
        SELECT count(*) FROM cancelled WHERE reason IN ('expired', 'left_mart', 'left_segment')
    ) AS withdrawn,
    CASE WHEN queued > 0 THEN (SELECT count(*) FROM crm.email_queue) ELSE 0 END AS queue_rows,
    (SELECT count(*) FROM written) AS written
FROM told
