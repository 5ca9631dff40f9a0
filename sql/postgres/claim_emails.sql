-- Take up to $1 waiting mails for worker $2: the most urgent first, then those never tried, then
-- the oldest. Passed over are mails that are not due or over, of paused templates and beyond a
-- template's daily cap, of users who are suppressed, not on the allowlist (while it has rows) or
-- were mailed too lately, and what somebody else is taking just now.
WITH RECURSIVE
-- Each template and priority that waits, by one look into the index for each.
kinds AS (
    (
        SELECT q.template, q.priority
        FROM crm.email_queue AS q
        WHERE q.status = 'pending'
        ORDER BY q.template, q.priority
        LIMIT 1
    )
    UNION ALL
    SELECT n.template, n.priority
    FROM kinds AS k
    CROSS JOIN LATERAL (
        SELECT q.template, q.priority
        FROM crm.email_queue AS q
        WHERE q.status = 'pending' AND (q.template, q.priority) > (k.template, k.priority)
        ORDER BY q.template, q.priority
        LIMIT 1
    ) AS n
),

allowed AS MATERIALIZED (
    SELECT
        k.template,
        k.priority,
        t.template IS NOT NULL AS has_rule,
        t.cooldown,
        t.min_gap,
        500 + 2 * $1::bigint AS window_size,
        CASE
            WHEN t.daily_cap IS NULL THEN $1::bigint
            ELSE least($1::bigint, crm.email_cap_left(k.template, t.daily_cap))
        END AS most
    FROM kinds AS k
    LEFT JOIN crm.email_templates AS t ON t.template = k.template
    WHERE t.paused IS NOT true
),

-- One priority after the other, so that no more mails are locked than are taken. Of each kind a claim
-- looks at the first few hundred, however many may not go.
next AS MATERIALIZED (
    SELECT c.*
    FROM (SELECT DISTINCT a.priority FROM allowed AS a ORDER BY a.priority) AS p
    CROSS JOIN LATERAL (
        SELECT m.*, a.template, a.priority, a.most
        FROM allowed AS a
        CROSS JOIN LATERAL (
            SELECT q.id, w.not_before, w.created_at
            FROM crm.email_due(a.template, a.priority, a.window_size) AS w
            -- A look-up per mail, whatever the planner thinks, which locks what is taken and no more.
            CROSS JOIN LATERAL (
                SELECT l.id
                FROM crm.email_queue AS l
                CROSS JOIN LATERAL crm.email_rest(
                    l.user_id, a.template, l.expires_at, a.has_rule, a.cooldown, a.min_gap
                ) AS r
                WHERE
                    l.id = w.id
                    -- Once more, because another claim may have been faster.
                    AND l.status = 'pending'
                    AND l.not_before <= pg_catalog.statement_timestamp()
                    AND r.reason IS NULL
                FOR UPDATE OF l SKIP LOCKED
            ) AS q
            ORDER BY w.not_before, w.created_at, w.id
            LIMIT a.most
        ) AS m
        WHERE a.priority = p.priority
        ORDER BY m.not_before, m.created_at, m.id
        LIMIT $1::bigint
    ) AS c
    LIMIT $1::bigint
),

-- Kinds of which there are more mails than were looked at, and too few may go.
starved AS (
    SELECT a.template, a.priority, a.window_size
    FROM allowed AS a
    WHERE
        (SELECT pg_catalog.count(*) FROM next) < $1::bigint
        AND (
            SELECT pg_catalog.count(*)
            FROM next AS n
            WHERE n.template = a.template AND n.priority = a.priority
        ) < a.most
),

looked_at AS (
    SELECT w.id, s.window_size, pg_catalog.count(*) OVER (PARTITION BY s.template, s.priority) AS mails
    FROM starved AS s
    CROSS JOIN LATERAL crm.email_due(s.template, s.priority, s.window_size) AS w
),

-- What was passed over is looked at again in an hour, so that the next claim gets further.
passed_over AS (
    SELECT q.id
    FROM looked_at AS l
    JOIN crm.email_queue AS q ON q.id = l.id
    WHERE
        l.mails = l.window_size
        AND NOT EXISTS (SELECT FROM next AS n WHERE n.id = l.id)
        AND q.status = 'pending'
    FOR UPDATE OF q SKIP LOCKED
),

put_off AS (
    UPDATE crm.email_queue AS q
    SET not_before = pg_catalog.statement_timestamp() + INTERVAL '1 hour'
    FROM passed_over AS o
    WHERE q.id = o.id
),

-- A template may have mails of several priorities, and has one cap.
within_cap AS (
    SELECT n.id
    FROM (
        SELECT
            id,
            most,
            pg_catalog.row_number() OVER (
                PARTITION BY template ORDER BY priority, not_before, created_at, id
            ) AS number
        FROM next
    ) AS n
    WHERE n.number <= n.most
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
        reason = NULL,
        idempotency_key = coalesce(
            q.idempotency_key,
            crm.email_idempotency_key(q.user_id, q.template, q.episode_at)
        )
    FROM within_cap AS w
    WHERE q.id = w.id
    RETURNING q.*
)

SELECT
    id, user_id, template, episode_at, priority, payload, attempts, worker, claimed_at,
    idempotency_key
FROM claimed
ORDER BY priority, not_before, created_at, id
