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

-- makes: crm.user_segments
-- Keys compare as bytes (COLLATE "C"): faster than a language's order, and equality is the same.
CREATE TABLE IF NOT EXISTS crm.user_segments (
    user_id            text COLLATE "C" PRIMARY KEY,
    segment            text NOT NULL,
    total_searches     bigint NOT NULL,
    total_conversions  bigint NOT NULL,
    lifetime_value     numeric(14, 2) NOT NULL,
    previous_segment   text,
    segment_changed_at timestamptz NOT NULL DEFAULT now(),
    synced_at          timestamptz NOT NULL DEFAULT now()
);

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
    UNIQUE (user_id, template, episode_at)
)
-- Every mail changes a few times and then never again: claims step over what is not yet vacuumed.
WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);

-- makes: crm.email_queue_open
-- At most one open mail a user. Said in a way that no query can use: with two indices to choose
-- from, the planner takes waiting mails for fewer than there are and sorts them all for a claim.
CREATE UNIQUE INDEX IF NOT EXISTS email_queue_open
    ON crm.email_queue (user_id) WHERE array_position('{pending,processing}', status) > 0;

-- makes: crm.email_queue_claim
-- The order in which workers claim, however many finished rows there are.
CREATE INDEX IF NOT EXISTS email_queue_claim
    ON crm.email_queue (priority, created_at, id) WHERE status = 'pending';

-- makes: crm.email_queue_lease
CREATE INDEX IF NOT EXISTS email_queue_lease
    ON crm.email_queue (claimed_at) WHERE status = 'processing';

-- makes: crm.email_suppressions
CREATE TABLE IF NOT EXISTS crm.email_suppressions (
    user_id text COLLATE "C" PRIMARY KEY,
    reason  text,
    since   timestamptz NOT NULL DEFAULT now()
);

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
