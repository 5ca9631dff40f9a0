-- The tables of the service. Safe to run again, also with psql.
-- `-- makes: NAME` heads each statement; python -m etl.init_db leaves out those whose NAME
-- is in the catalog already, so that a run with nothing to do takes no lock.

-- For psql. Defaults, checks and indices keep the function that a name means now, so that no
-- function of another schema may bear it.
SET search_path = pg_catalog, pg_temp;

-- makes: crm
CREATE SCHEMA IF NOT EXISTS crm;

-- makes: etl
CREATE SCHEMA IF NOT EXISTS etl;

-- makes: etl.shard_of
-- The shard of a key, of so many: the hash of shard_of in sql/warehouse/session.sql. One expression
-- and no more volatile than convert_to, so that Postgres inlines it.
CREATE OR REPLACE FUNCTION etl.shard_of(key text, shards int) RETURNS int
LANGUAGE sql STABLE PARALLEL SAFE
RETURN (('x' || substr(md5(convert_to(key, 'UTF8')), 1, 8))::bit(32)::bigint % shards)::int;

-- makes: etl.key_text
-- The text of a key's column (see etl/warehouse/keys.py). A key of one text column is that text as it
-- is; any other goes to etl.shard_of as etl.key_text(a) || '|' || etl.key_text(b). Of integers there is
-- one for each width, because Postgres prefers to make a float of them.
DO $do$
BEGIN
    CREATE OR REPLACE FUNCTION etl.key_text(x text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN replace(replace(x, '\', '\\'), '|', '\|');

    CREATE OR REPLACE FUNCTION etl.key_text(x smallint) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN x::text;

    CREATE OR REPLACE FUNCTION etl.key_text(x int) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN x::text;

    CREATE OR REPLACE FUNCTION etl.key_text(x bigint) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN x::text;

    CREATE OR REPLACE FUNCTION etl.key_text(x numeric) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN trim_scale(x)::text;

    CREATE OR REPLACE FUNCTION etl.key_text(x double precision) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN x = 'NaN' THEN 'NaN' ELSE encode(float8send(x + 0), 'hex') END;

    CREATE OR REPLACE FUNCTION etl.key_text(x boolean) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN x::text;

    CREATE OR REPLACE FUNCTION etl.key_text(x date) RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN to_char(x::timestamp, 'YYYY-MM-DD');

    CREATE OR REPLACE FUNCTION etl.key_text(x timestamp) RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN to_char(x, 'YYYY-MM-DD"T"HH24:MI:SS.US');

    CREATE OR REPLACE FUNCTION etl.key_text(x timestamptz) RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN to_char(x AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
END
$do$;

-- makes: crm.user_segments
-- Keys compare as bytes (COLLATE "C"): faster than a language's order, and equality is the same.
-- A tenth of each page stays free, so that the new version of a row fits beside the old one and the
-- index need not be told, where about so many users change. More room would make a first load and
-- every reading of the table slower (docs/scaling-out.md).
CREATE TABLE IF NOT EXISTS crm.user_segments (
    user_id            text COLLATE "C" PRIMARY KEY,
    segment            text NOT NULL,
    total_searches     bigint NOT NULL,
    total_conversions  bigint NOT NULL,
    lifetime_value     numeric(14, 2) NOT NULL,
    previous_segment   text,
    segment_changed_at timestamptz NOT NULL DEFAULT now(),
    synced_at          timestamptz NOT NULL DEFAULT now()
)
WITH (fillfactor = 90);

-- makes: crm.user_segments.previous_segment
ALTER TABLE crm.user_segments ADD COLUMN IF NOT EXISTS previous_segment text;

-- makes: crm.user_segments.segment_changed_at
ALTER TABLE crm.user_segments
    ADD COLUMN IF NOT EXISTS segment_changed_at timestamptz NOT NULL DEFAULT now();

-- makes: crm.user_segments.synced_at
ALTER TABLE crm.user_segments ADD COLUMN IF NOT EXISTS synced_at timestamptz NOT NULL DEFAULT now();

-- makes: crm.email_queue
CREATE TABLE IF NOT EXISTS crm.email_queue (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id    text COLLATE "C" NOT NULL,
    template   text COLLATE "C" NOT NULL,
    episode_at timestamptz NOT NULL,
    priority   smallint NOT NULL,
    payload    jsonb NOT NULL,
    status     text NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'processing', 'sent', 'failed', 'cancelled')),
    reason     text,
    attempts   integer NOT NULL DEFAULT 0,
    worker     text,
    claimed_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    sent_at    timestamptz,
    not_before timestamptz NOT NULL DEFAULT 'epoch',
    expires_at timestamptz,
    idempotency_key text COLLATE "C",
    UNIQUE (user_id, template, episode_at)
)
-- Every mail changes a few times and then never again: claims step over what is not yet vacuumed.
WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);

-- makes: crm.email_queue_open
-- At most one open mail a user. Said in a way that no query can use: with two indices to choose
-- from, the planner takes waiting mails for fewer than there are and sorts them all for a claim.
CREATE UNIQUE INDEX IF NOT EXISTS email_queue_open
    ON crm.email_queue (user_id) WHERE array_position('{pending,processing}', status) > 0;

-- makes: crm.email_queue.not_before
-- A constant default: no row is written.
ALTER TABLE crm.email_queue
    ADD COLUMN IF NOT EXISTS not_before timestamptz NOT NULL DEFAULT 'epoch';

-- makes: crm.email_queue.expires_at
ALTER TABLE crm.email_queue ADD COLUMN IF NOT EXISTS expires_at timestamptz;

-- makes: crm.email_queue.idempotency_key
ALTER TABLE crm.email_queue ADD COLUMN IF NOT EXISTS idempotency_key text COLLATE "C";

-- makes: crm.email_queue_due
-- For each template and priority, the order in which workers claim: a claim finds what is due and
-- allowed, however many mails are finished, wait for their next attempt, or are of paused templates.
CREATE INDEX IF NOT EXISTS email_queue_due
    ON crm.email_queue (template, priority, not_before, created_at, id)
    WHERE status OPERATOR(pg_catalog.=) 'pending';

-- makes: crm.email_queue_sent
-- What was sent today, of a template with a daily cap.
CREATE INDEX IF NOT EXISTS email_queue_sent
    ON crm.email_queue (template, sent_at) WHERE sent_at IS NOT NULL;

-- makes: crm.email_queue_key
CREATE UNIQUE INDEX IF NOT EXISTS email_queue_key
    ON crm.email_queue (idempotency_key) WHERE idempotency_key IS NOT NULL;

-- makes: crm.email_queue_lease
CREATE INDEX IF NOT EXISTS email_queue_lease
    ON crm.email_queue (claimed_at) WHERE status = 'processing';

-- makes: crm.email_suppressions
-- The template '*' stands for all of them.
CREATE TABLE IF NOT EXISTS crm.email_suppressions (
    user_id  text COLLATE "C" NOT NULL,
    reason   text,
    since    timestamptz NOT NULL DEFAULT now(),
    template text COLLATE "C" NOT NULL DEFAULT '*',
    CONSTRAINT email_suppressions_key PRIMARY KEY (user_id, template)
);

-- makes: crm.email_suppressions.template
ALTER TABLE crm.email_suppressions
    ADD COLUMN IF NOT EXISTS template text COLLATE "C" NOT NULL DEFAULT '*';

-- makes: crm.email_suppressions.email_suppressions_key
-- The index is built beside whoever writes, and made the key in a moment.
CREATE UNIQUE INDEX IF NOT EXISTS email_suppressions_key
    ON crm.email_suppressions (user_id, template);
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_constraint WHERE conname = 'email_suppressions_key') THEN
        ALTER TABLE crm.email_suppressions
            DROP CONSTRAINT IF EXISTS email_suppressions_pkey,
            ADD CONSTRAINT email_suppressions_key PRIMARY KEY USING INDEX email_suppressions_key;
    END IF;
END
$$;

-- makes: crm.email_templates
-- The reins: `paused` and `daily_cap` are for people to set, and nothing here ever sets them again.
-- The times are those of the rules at the last run (cooldown null: never again).
CREATE TABLE IF NOT EXISTS crm.email_templates (
    template  text COLLATE "C" PRIMARY KEY,
    paused    boolean NOT NULL DEFAULT false,
    daily_cap integer CHECK (daily_cap >= 0),
    cooldown  interval,
    min_gap   interval NOT NULL DEFAULT '0'
);

-- makes: crm.email_allowlist
-- While it has rows, only these users are mailed.
CREATE TABLE IF NOT EXISTS crm.email_allowlist (
    user_id text COLLATE "C" PRIMARY KEY,
    note    text
);

-- makes: crm.email_counts
-- What etl.prune dropped from the queue, for the report.
CREATE TABLE IF NOT EXISTS crm.email_counts (
    template text COLLATE "C" NOT NULL,
    week     date NOT NULL,
    status   text NOT NULL,
    reason   text NOT NULL,
    mails    bigint NOT NULL,
    PRIMARY KEY (template, week, status, reason)
);

-- makes: crm.email_weekly_counts
-- Mails of the queue by template, week in which they were queued, status and reason (of a mail that was
-- sent: the week of that). A function, so that the report does not depend on the table, which may be
-- dropped and made again; with its owner's rights, so that who reads the report need not see the queue.
DO $do$
BEGIN
    CREATE OR REPLACE FUNCTION crm.email_weekly_counts()
    RETURNS TABLE (template text, week date, status text, reason text, mails bigint)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
        SELECT m.template, m.week, m.status, m.reason, count(*)
        FROM (
            SELECT
                q.template,
                date_trunc('week', q.created_at AT TIME ZONE 'UTC')::date AS week,
                q.status,
                CASE q.status
                    WHEN 'cancelled' THEN coalesce(q.reason, '')
                    WHEN 'sent' THEN coalesce(
                        to_char(date_trunc('week', q.sent_at AT TIME ZONE 'UTC'), 'YYYY-MM-DD'), ''
                    )
                    ELSE ''
                END AS reason
            FROM crm.email_queue AS q
        ) AS m
        GROUP BY m.template, m.week, m.status, m.reason
    $$;
    REVOKE ALL ON FUNCTION crm.email_weekly_counts FROM public;
END
$do$;

-- makes: crm.email_report.sent_in_week
-- What became of the mails of a template that were queued in a week (UTC, from Monday on); and, as
-- sent_in_week, how many were sent in it, whenever they were queued. Those that were pruned before
-- there was that column count in the week in which they were queued.
DO $do$
BEGIN
    CREATE OR REPLACE VIEW crm.email_report AS
    WITH counts AS (
        SELECT template, week, status, reason, mails
        FROM crm.email_counts
        UNION ALL
        SELECT template, week, status, reason, mails
        FROM crm.email_weekly_counts()
    ),

    by_week AS (
        SELECT
            template,
            week,
            status,
            CASE WHEN status = 'cancelled' THEN reason ELSE '' END AS reason,
            mails,
            0 AS sent_in_week
        FROM counts
        UNION ALL
        SELECT template, coalesce(nullif(reason, '')::date, week), status, '', 0, mails
        FROM counts
        WHERE status = 'sent'
    ),

    reasons AS (
        SELECT
            template,
            week,
            status,
            reason,
            sum(mails)::bigint AS mails,
            sum(sent_in_week) AS sent_in_week
        FROM by_week
        GROUP BY template, week, status, reason
    )

    SELECT
        template,
        week,
        coalesce(sum(mails) FILTER (WHERE reason <> 'holdout'), 0)::bigint AS queued,
        coalesce(sum(mails) FILTER (WHERE status IN ('pending', 'processing')), 0)::bigint AS waiting,
        coalesce(sum(mails) FILTER (WHERE status = 'sent'), 0)::bigint AS sent,
        coalesce(sum(mails) FILTER (WHERE status = 'failed'), 0)::bigint AS failed,
        coalesce(sum(mails) FILTER (WHERE status = 'cancelled' AND reason <> 'holdout'), 0)::bigint
            AS cancelled,
        coalesce(
            jsonb_object_agg(reason, mails)
                FILTER (WHERE status = 'cancelled' AND reason <> 'holdout'),
            '{}'
        ) AS cancelled_by_reason,
        coalesce(sum(mails) FILTER (WHERE reason = 'holdout'), 0)::bigint AS held_out,
        sum(sent_in_week)::bigint AS sent_in_week
    FROM reasons
    GROUP BY template, week;

    DROP FUNCTION IF EXISTS crm.email_queue_counts();
END
$do$;

-- makes: crm.email_idempotency_key
-- What a mail is, whatever its row's number: user, template and visit.
CREATE OR REPLACE FUNCTION crm.email_idempotency_key(
    user_id text, template text, episode_at timestamptz
) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN encode(
    sha256(
        convert_to(
            jsonb_build_array(user_id, template, extract(EPOCH FROM episode_at)::text)::text,
            'UTF8'
        )
    ),
    'hex'
);

-- makes: crm.email_retry_wait
-- How long a mail waits after so many attempts; null: it is given up, 70 hours after the first.
CREATE OR REPLACE FUNCTION crm.email_retry_wait(attempts int) RETURNS interval
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN attempts < 9 THEN make_interval(mins => least(4 ^ (attempts - 1), 1440)::int)
END;

-- makes: crm.email_due
-- The first mails of a template and priority that are due, in the order in which workers claim. One
-- SELECT without settings of its own, so that Postgres inlines it and reads no more than is asked for.
CREATE OR REPLACE FUNCTION crm.email_due(kind text, urgency smallint, most bigint)
RETURNS TABLE (id bigint, not_before timestamptz, created_at timestamptz)
LANGUAGE sql STABLE
AS $$
    SELECT q.id, q.not_before, q.created_at
    FROM crm.email_queue AS q
    WHERE
        q.status = 'pending'
        AND q.template = kind
        AND q.priority = urgency
        AND q.not_before <= pg_catalog.statement_timestamp()
    ORDER BY q.not_before, q.created_at, q.id
    LIMIT most
$$;

-- makes: crm.email_rest
-- Why a waiting mail of a user and template is handed to nobody, null where it may go: its visit is
-- too old, the user has unsubscribed or is not on the allowlist, or was mailed since it was queued (by
-- a late report or without the queue). And until when, of the last; null: for ever. One SELECT
-- without settings of its own, so that Postgres inlines it: claims ask for each mail they look at.
CREATE OR REPLACE FUNCTION crm.email_rest(
    who text, kind text, over timestamptz, has_rule boolean, cooldown interval, min_gap interval
)
RETURNS TABLE (reason text, until timestamptz)
LANGUAGE sql STABLE
AS $$
    SELECT
        CASE
            WHEN over <= pg_catalog.statement_timestamp() THEN 'expired'
            -- OFFSET 0 keeps these a look-up per mail: the planner might read the whole table.
            WHEN EXISTS (
                SELECT
                FROM crm.email_suppressions AS s
                WHERE s.user_id = who AND s.template IN ('*', kind)
                OFFSET 0
            ) THEN 'suppressed'
            WHEN
                EXISTS (SELECT FROM crm.email_allowlist)
                AND NOT EXISTS (
                    SELECT FROM crm.email_allowlist AS l WHERE l.user_id = who OFFSET 0
                )
                THEN 'allowlist'
            -- By the user's mails, not by all that were sent: no index has these.
            WHEN has_rule THEN (
                SELECT
                    CASE
                        WHEN pg_catalog.bool_or(
                            u.template = kind
                            AND coalesce(
                                u.sent_at > pg_catalog.statement_timestamp() - cooldown,
                                u.sent_at IS NOT NULL
                            )
                        ) THEN 'cooldown'
                        WHEN pg_catalog.bool_or(
                            u.sent_at > pg_catalog.statement_timestamp() - min_gap
                        ) THEN 'gap'
                    END
                FROM crm.email_queue AS u
                WHERE u.user_id = who
            )
        END,
        (
            SELECT
                nullif(
                    pg_catalog.max(
                        CASE
                            WHEN u.template = kind AND u.sent_at IS NOT NULL
                                THEN greatest(
                                    coalesce(u.sent_at + cooldown, 'infinity'), u.sent_at + min_gap
                                )
                            ELSE u.sent_at + min_gap
                        END
                    ),
                    'infinity'
                )
            FROM crm.email_queue AS u
            WHERE u.user_id = who
        )
$$;

-- makes: crm.email_cap_used
-- How many mails of a template count for its daily cap: those that were sent today (UTC), also without
-- the queue, and those that workers hold.
CREATE OR REPLACE FUNCTION crm.email_cap_used(kind text) RETURNS bigint
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT count(*)
    FROM (
        SELECT
        FROM
            crm.email_queue AS q,
            (
                SELECT date_trunc('day', statement_timestamp() AT TIME ZONE 'UTC')
                    AT TIME ZONE 'UTC' AS begins
            ) AS today
        WHERE
            q.template = kind
            AND q.sent_at >= today.begins
            AND q.sent_at < today.begins + INTERVAL '24 hours' -- not what a wrong clock dated later
        UNION ALL
        SELECT FROM crm.email_queue AS q
        WHERE q.template = kind AND q.status = 'processing'
    ) AS m
$$;

-- makes: crm.email_cap_left
-- How many mails of a template may still be handed out today (UTC): none while another claim of
-- it is not committed. Two statements, the second of which sees what a claim before it committed.
CREATE OR REPLACE FUNCTION crm.email_cap_left(kind text, cap int) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('crm.email_cap.' || kind, 0)) THEN
        RETURN 0;
    END IF;
    RETURN greatest(cap - crm.email_cap_used(kind), 0);
END
$$;

-- makes: crm.email_waiting
-- The mails that wait, and why a claim now would hand each to nobody and until when (until is null: as
-- long as nothing changes); reason is null where it may go. claim_emails.sql does by the same functions.
CREATE OR REPLACE FUNCTION crm.email_waiting()
RETURNS TABLE (id bigint, user_id text, template text, reason text, until timestamptz)
LANGUAGE sql STABLE
AS $$
    WITH templates AS MATERIALIZED (
        SELECT
            t.template,
            t.paused,
            t.cooldown,
            t.min_gap,
            t.daily_cap <= crm.email_cap_used(t.template) AS is_full
        FROM crm.email_templates AS t
    ),

    mails AS (
        SELECT
            q.id,
            q.user_id,
            q.template,
            q.not_before,
            r.until,
            CASE
                WHEN r.reason IN ('expired', 'suppressed', 'allowlist') THEN r.reason
                WHEN t.paused THEN 'paused'
                WHEN r.reason IS NOT NULL THEN r.reason
                WHEN q.not_before > pg_catalog.statement_timestamp() THEN 'not due'
                WHEN t.is_full THEN 'daily cap'
            END AS reason
        FROM crm.email_queue AS q
        LEFT JOIN templates AS t ON t.template = q.template
        CROSS JOIN LATERAL (
            SELECT r.reason, r.until
            FROM crm.email_rest(
                q.user_id, q.template, q.expires_at, t.template IS NOT NULL, t.cooldown, t.min_gap
            ) AS r
            OFFSET 0 -- once a mail
        ) AS r
        WHERE q.status = 'pending'
    )

    SELECT
        m.id,
        m.user_id,
        m.template,
        m.reason,
        CASE
            WHEN m.reason IN ('cooldown', 'gap') THEN m.until
            WHEN m.reason = 'not due' THEN m.not_before
            WHEN m.reason = 'daily cap' THEN pg_catalog.date_trunc(
                'day', pg_catalog.statement_timestamp() AT TIME ZONE 'UTC'
            ) AT TIME ZONE 'UTC' + INTERVAL '24 hours' -- in any time zone's session
        END
    FROM mails AS m
$$;

-- makes: crm.record_sent_email
-- Record a mail that was sent without the queue. With its owner's rights, because a worker may
-- queue no mail.
DO $do$
BEGIN
    CREATE OR REPLACE FUNCTION crm.record_sent_email(who text, kind text, at timestamptz)
    RETURNS SETOF bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    BEGIN
        -- Neither infinity, nor a year from which cooldown and gap (ten years at most) lead past 9999.
        IF at < '0001-01-01 00:00:00+00' OR at >= '9980-01-01 00:00:00+00' THEN
            RAISE 'a mail cannot have been sent at %; give the moment when it was', at
                USING ERRCODE = 'datetime_field_overflow';
        END IF;
        RETURN QUERY
        INSERT INTO crm.email_queue AS q (
            user_id, template, episode_at, priority, payload, status, reason, created_at, sent_at
        )
        VALUES (who, kind, at, 9, '{}', 'sent', 'recorded', at, at)
        -- The mail of this very visit, unless a worker has it.
        ON CONFLICT (user_id, template, episode_at) DO UPDATE
        SET
            status = 'sent',
            reason = 'recorded',
            sent_at = excluded.sent_at,
            updated_at = clock_timestamp()
        WHERE q.status IN ('pending', 'failed', 'cancelled')
        RETURNING q.id;
    END
    $$;
    REVOKE ALL ON FUNCTION crm.record_sent_email FROM public;
END
$do$;

-- makes: crm.rename_email_suppressions
-- Who unsubscribed from a template has done so under its new name, too. With its owner's rights, because
-- a sync may change no unsubscribe.
DO $do$
BEGIN
    CREATE OR REPLACE FUNCTION crm.rename_email_suppressions(former text, kind text)
    RETURNS SETOF text
    LANGUAGE sql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
        INSERT INTO crm.email_suppressions (user_id, reason, since, template)
        SELECT s.user_id, s.reason, s.since, kind
        FROM crm.email_suppressions AS s
        WHERE s.template = former
        ON CONFLICT DO NOTHING
        RETURNING user_id
    $$;
    REVOKE ALL ON FUNCTION crm.rename_email_suppressions FROM public;
END
$do$;

-- makes: etl.sync_runs
CREATE TABLE IF NOT EXISTS etl.sync_runs (
    run_id      text NOT NULL,
    sync        text NOT NULL,
    shard       integer NOT NULL,
    shards      integer NOT NULL,
    status      text NOT NULL
        CHECK (status IN ('running', 'ok', 'failed', 'refused', 'cancelled')),
    started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,
    mart_rows   bigint,
    mart_built_at timestamptz,
    alerted_at  timestamptz,
    extracted   bigint,
    rejected    bigint,
    inserted    bigint,
    updated     bigint,
    unchanged   bigint,
    deleted     bigint,
    written     bigint,
    cancelled   bigint,
    suppressed  bigint,
    held_back   bigint,
    unmapped    bigint,
    below_threshold bigint,
    seconds     double precision,
    forced      boolean NOT NULL,
    warning     text,
    error       text,
    version     text NOT NULL,
    host        text NOT NULL,
    started_by  text NOT NULL,
    PRIMARY KEY (run_id, sync, shard)
);

-- makes: etl.sync_runs.unmapped
ALTER TABLE etl.sync_runs ADD COLUMN IF NOT EXISTS unmapped bigint;

-- makes: etl.sync_runs.below_threshold
ALTER TABLE etl.sync_runs ADD COLUMN IF NOT EXISTS below_threshold bigint;

-- makes: etl.sync_runs.warning
ALTER TABLE etl.sync_runs ADD COLUMN IF NOT EXISTS warning text;

-- makes: etl.sync_runs.mart_built_at
ALTER TABLE etl.sync_runs ADD COLUMN IF NOT EXISTS mart_built_at timestamptz;

-- makes: etl.sync_runs.alerted_at
ALTER TABLE etl.sync_runs ADD COLUMN IF NOT EXISTS alerted_at timestamptz;

-- makes: etl.sync_runs_recent
CREATE INDEX IF NOT EXISTS sync_runs_recent ON etl.sync_runs (sync, started_at DESC);

-- makes: etl.rejected_rows
CREATE TABLE IF NOT EXISTS etl.rejected_rows (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id      text NOT NULL,
    sync        text NOT NULL,
    key         text,
    reasons     text[] NOT NULL,
    row         jsonb NOT NULL,
    rejected_at timestamptz NOT NULL DEFAULT now()
);

-- makes: etl.rejected_rows_run
CREATE INDEX IF NOT EXISTS rejected_rows_run ON etl.rejected_rows (run_id);

-- makes: etl.rejected_rows_key
CREATE INDEX IF NOT EXISTS rejected_rows_key ON etl.rejected_rows (key, rejected_at);
