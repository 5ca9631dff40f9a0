-- Decide what becomes of each user's occasion and waiting mail: one row a user who has either.
-- A run stages of these what email_triggers.sql is to write; --decisions and etl.explain tell them.
--
-- `triggers` holds the users of the mart (email_triggers.transform): template is null where their
-- segment calls for no mail, and `rejected` is true where nobody knows their segment. `mails_open`, and
-- `mails_ended` (which has those being sent, too), is what the queue holds of them
-- (sql/postgres/email_mails.sql); `mails_resting` and `mails_recent` are `mails_ended` once more.
-- `unsubscribed` says whom it must not mail (sql/postgres/email_unsubscribed.sql).
-- The variable as_of is the mart's build time, no_episode the visit of a mart without visits, holdout
-- the part of the users who are held out.
--
-- Joins are made as they are written (see etl/mail/decisions.py): the triggers stream by in their
-- order, and only the right-hand sides are held in memory: a part of the users at a time.
WITH ended AS (
    SELECT * FROM mails_ended WHERE status NOT IN ('pending', 'processing')
),

resting AS (
    SELECT user_id, template, max(rests_until) AS rests_until
    FROM mails_resting
    WHERE is_resting
    GROUP BY user_id, template
),

recent AS (
    SELECT user_id, max(gap_until) AS gap_until
    FROM mails_recent
    WHERE is_recent
    GROUP BY user_id
),

known AS (
    SELECT
        coalesce(t.user_id, o.user_id) AS user_id,
        t.user_id IS NULL AS is_absent,
        coalesce(t.rejected, false) AS is_rejected,
        t.template,
        t.episode_at,
        t.priority,
        t.payload,
        t.payload_hash,
        t.expires_at,
        t.due,
        o.status = 'pending' AND o.is_ours AS waits,
        o.status IS NOT NULL AND NOT (o.status = 'pending' AND o.is_ours) AS is_blocked,
        o.id AS open_id,
        o.status AS open_status,
        o.template AS open_template,
        o.episode_at AS open_episode_at,
        o.priority AS open_priority,
        o.payload_hash AS open_payload_hash,
        o.expires_at AS open_expires_at,
        o.is_outdated AS open_is_outdated
    FROM triggers AS t
    FULL JOIN mails_open AS o ON o.user_id = t.user_id
),

looked_up AS (
    SELECT
        k.*,
        e.id AS ended_id,
        e.status AS ended_status,
        r.user_id IS NOT NULL AS is_resting,
        r.rests_until,
        g.gap_until,
        coalesce(list_has_any(u.templates, ['*', k.template]), false) AS is_unsubscribed,
        coalesce(list_has_any(u.templates, ['*', k.open_template]), false) AS open_is_unsubscribed,
        coalesce(
            k.open_template = k.template AND k.open_episode_at = k.episode_at, false
        ) AS open_is_same,
        -- The visit moved back: the waiting mail is about it, and keeps up.
        coalesce(
            k.open_status = 'pending'
            AND k.open_template = k.template
            AND k.open_episode_at > k.episode_at
            AND k.open_episode_at <> getvariable('no_episode'),
            false
        ) AS moved_back,
        -- Who was held out of a visit's mail stays so, whatever the setting says later.
        coalesce(e.status <> 'cancelled' OR e.is_held_out, false) AS is_settled
    FROM known AS k
    LEFT JOIN ended AS e
        ON e.user_id = k.user_id AND e.template = k.template AND e.episode_at = k.episode_at
    LEFT JOIN resting AS r ON r.user_id = k.user_id AND r.template = k.template
    LEFT JOIN recent AS g ON g.user_id = k.user_id
    LEFT JOIN unsubscribed AS u ON u.user_id = k.user_id
),

-- A candidate is a fresh occasion that is not in the queue, or was taken back before it was sent.
candidates AS (
    SELECT
        *,
        coalesce(due, false) AND NOT (open_is_same OR moved_back OR is_settled) AS is_candidate,
        CASE
            WHEN is_unsubscribed THEN 'suppressed'
            WHEN is_blocked THEN 'open' -- one that waits gives way, where it is ours to take back
            WHEN is_resting THEN 'cooldown'
            WHEN gap_until IS NOT NULL THEN 'gap'
            WHEN
                getvariable('holdout') > 0
                -- Salted, so that it has nothing to do with the hash of shards.
                AND ('0x' || left(sha256('holdout' || template || chr(31) || user_id), 8))::UINTEGER
                < getvariable('holdout') * 4294967296
                THEN 'holdout'
        END AS blocked_by
    FROM looked_up
),

reasons AS (
    SELECT
        *,
        is_candidate AND blocked_by IS NULL AS is_queued,
        is_candidate AND blocked_by = 'holdout' AND ended_id IS NULL AS is_held_out,
        CASE
            WHEN NOT coalesce(waits, false) THEN NULL
            WHEN open_is_unsubscribed THEN 'suppressed'
            WHEN is_candidate AND blocked_by IS NULL THEN 'superseded'
            WHEN open_expires_at < getvariable('as_of') THEN 'expired'
            WHEN is_absent THEN 'left_mart'
            WHEN is_rejected THEN NULL -- nobody knows
            WHEN template IS NULL OR template <> open_template THEN 'left_segment'
            WHEN
                open_episode_at = getvariable('no_episode')
                AND coalesce(episode_at <> getvariable('no_episode'), true)
                THEN 'unknown_visit'
        END AS reason,
        -- The trigger's own mail, though its visit moved back since.
        coalesce(waits AND due AND (open_is_same OR moved_back), false) AS is_due
    FROM candidates
),

refreshes AS (
    SELECT
        *,
        -- Rule 3 of docs/email-queue.md, also of a visit that moved back or became unknown; a later one
        -- is another mail's.
        coalesce(
            waits
            AND reason IS NULL
            AND template = open_template
            AND (episode_at IS NULL OR episode_at <= open_episode_at)
            AND (
                priority <> open_priority
                OR payload_hash <> open_payload_hash -- null: stays as it was at the first attempt
                OR open_is_outdated
            ),
            false
        ) AS is_refreshed
    FROM reasons
)

SELECT
    user_id,
    template,
    episode_at,
    priority,
    payload,
    expires_at,
    is_queued,
    is_held_out,
    is_refreshed,
    is_candidate,
    is_due,
    coalesce(due, false) AS due,
    template IS NOT NULL AND episode_at IS NULL AS is_without_episode,
    CASE
        WHEN template IS NULL OR (is_due AND reason IS NOT NULL) THEN NULL
        WHEN is_refreshed THEN 'refreshed'
        WHEN episode_at IS NULL THEN 'held back: no episode'
        WHEN NOT due THEN 'old news'
        WHEN is_candidate AND blocked_by = 'suppressed' THEN 'suppressed'
        WHEN is_candidate AND blocked_by IS NOT NULL THEN 'held back: ' || blocked_by
        WHEN is_queued AND ended_id IS NOT NULL THEN 'pending again'
        WHEN is_queued THEN 'queued'
        WHEN open_is_same AND open_status = 'processing' THEN 'being sent'
        WHEN open_is_same OR moved_back THEN 'waiting'
        WHEN ended_status = 'cancelled' THEN 'held out'
        ELSE ended_status
    END AS outcome,
    -- The longer of the two; null: for ever.
    CASE
        WHEN NOT is_candidate OR (blocked_by = 'cooldown' AND rests_until IS NULL) THEN NULL
        WHEN blocked_by IN ('cooldown', 'gap') THEN greatest(rests_until, gap_until)
    END AS until,
    CASE WHEN is_queued THEN ended_id END AS revived_id,
    -- The waiting mail, and why it is to be cancelled.
    CASE WHEN waits THEN open_id END AS waiting_id,
    CASE WHEN waits THEN open_template END AS waiting_template,
    CASE WHEN waits THEN open_episode_at END AS waiting_episode_at,
    CASE WHEN waits THEN open_priority END AS waiting_priority,
    CASE WHEN waits THEN open_expires_at END AS waiting_expires_at,
    reason
FROM refreshes
WHERE template IS NOT NULL OR waits
