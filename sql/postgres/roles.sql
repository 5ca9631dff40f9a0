-- Roles with no more rights than their work needs. An admin runs this after schema.sql, by hand:
-- psql -1 -v ON_ERROR_STOP=1 -f sql/postgres/roles.sql. Safe to run again: the roles end up with
-- what stands here and nothing else. Nobody logs in as one of them; see docs/deployment.md.
--
-- searchflow_etl         the syncs; no DDL but temporary tables, no DELETE
-- searchflow_etl_mirror  the same, with --delete-missing
-- searchflow_prune       python -m etl.prune
-- searchflow_status      python -m etl.status; sees nothing personal
-- searchflow_support     python -m etl.explain; reads what is known of each user
-- searchflow_mailer      mail workers: claim, complete and release mails, unsubscribe users
-- searchflow_marketing   people who hold the reins of mails: pause, cap, allowlist, unsubscribe, report
-- searchflow_reader      readers of crm
-- searchflow_owner       no rights; its members may own schemas and tables (see untrusted.sql)

-- An admin must not call somebody else's format(text, text) of the schema public.
SET search_path = pg_catalog, pg_temp;

\set jobs 'searchflow_etl, searchflow_prune, searchflow_status, searchflow_support'
\set roles :jobs ', searchflow_mailer, searchflow_marketing, searchflow_reader'
\set all :roles ', searchflow_etl_mirror, searchflow_owner'

-- The tables that syncs bring up to their marts, a line each.
\set targets 'crm.user_segments'

SELECT format('CREATE ROLE %I NOLOGIN', role)
FROM unnest(string_to_array(:'all', ', ')) AS role
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = role)
\gexec

REVOKE ALL ON DATABASE :"DBNAME" FROM :all;
REVOKE ALL ON SCHEMA crm, etl FROM :all;
REVOKE ALL ON ALL TABLES IN SCHEMA crm, etl FROM :all;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA crm, etl FROM :all;

GRANT CONNECT ON DATABASE :"DBNAME" TO :roles;
GRANT USAGE ON SCHEMA crm TO :roles;
GRANT USAGE ON SCHEMA etl TO :jobs;

-- Rows are staged in temporary tables.
GRANT TEMPORARY ON DATABASE :"DBNAME" TO searchflow_etl;
GRANT SELECT, INSERT, UPDATE ON :targets, crm.email_queue, etl.sync_runs TO searchflow_etl;
GRANT SELECT ON crm.email_suppressions, crm.email_allowlist TO searchflow_etl;
-- Whether a template is paused or capped is not for syncs to change.
GRANT SELECT, INSERT, UPDATE (cooldown, min_gap) ON crm.email_templates TO searchflow_etl;
GRANT EXECUTE ON FUNCTION crm.rename_email_suppressions TO searchflow_etl;
GRANT INSERT ON etl.rejected_rows TO searchflow_etl;

GRANT searchflow_etl TO searchflow_etl_mirror; -- with all it may
GRANT DELETE ON :targets TO searchflow_etl_mirror;

GRANT SELECT, DELETE ON etl.sync_runs TO searchflow_prune;
GRANT SELECT (rejected_at), DELETE ON etl.rejected_rows TO searchflow_prune;
GRANT SELECT (id, template, episode_at, status, reason, created_at, updated_at, sent_at), DELETE
    ON crm.email_queue TO searchflow_prune;
GRANT SELECT ON crm.email_templates TO searchflow_prune;
GRANT SELECT, INSERT, UPDATE ON crm.email_counts TO searchflow_prune;

GRANT SELECT ON etl.sync_runs TO searchflow_status;
GRANT SELECT (run_id, sync, reasons) ON etl.rejected_rows TO searchflow_status;
GRANT SELECT (status, template, created_at, claimed_at) ON crm.email_queue TO searchflow_status;
GRANT SELECT ON crm.email_templates, crm.email_allowlist TO searchflow_status;

GRANT SELECT ON crm.user_segments, crm.email_queue, crm.email_suppressions, crm.email_templates,
    crm.email_allowlist, etl.sync_runs TO searchflow_support;
GRANT SELECT (sync, key, reasons, rejected_at) ON etl.rejected_rows TO searchflow_support;

-- To whom a mail goes and what it says is not for workers to change.
GRANT SELECT, UPDATE (
    status, reason, attempts, worker, claimed_at, updated_at, sent_at, not_before, idempotency_key
) ON crm.email_queue TO searchflow_mailer;
GRANT SELECT (user_id, template), INSERT ON crm.email_suppressions TO searchflow_mailer;
GRANT SELECT ON crm.email_templates, crm.email_allowlist TO searchflow_mailer;
GRANT EXECUTE ON FUNCTION crm.record_sent_email TO searchflow_mailer;

-- Of the reins in docs/email-queue.md all but to take an unsubscribe back. Whom mails are for is hidden.
GRANT SELECT, UPDATE (paused, daily_cap) ON crm.email_templates TO searchflow_marketing;
GRANT SELECT, INSERT, UPDATE (note), DELETE ON crm.email_allowlist TO searchflow_marketing;
GRANT SELECT (template, since), INSERT (user_id, template, reason)
    ON crm.email_suppressions TO searchflow_marketing;
GRANT SELECT ON crm.email_report TO searchflow_marketing;
GRANT EXECUTE ON FUNCTION crm.email_weekly_counts TO searchflow_marketing, searchflow_reader;

GRANT SELECT ON :targets, crm.email_queue, crm.email_suppressions, crm.email_templates,
    crm.email_allowlist, crm.email_report TO searchflow_reader;

-- What everybody may comes on top of that. Other programs may need it, so it is told, not revoked.
SELECT
    has_database_privilege('public', :'DBNAME', 'TEMPORARY') AS temporary,
    EXISTS (
        SELECT FROM pg_catalog.pg_namespace
        WHERE nspname = 'public' AND has_schema_privilege('public', oid, 'CREATE')
    ) AS create
\gset public_
\if :public_temporary
\warn 'roles.sql: every login may make temporary tables:' REVOKE TEMPORARY ON DATABASE :"DBNAME" FROM PUBLIC
\endif
\if :public_create
\warn 'roles.sql: every login may make tables and functions: REVOKE CREATE ON SCHEMA public FROM PUBLIC'
\endif
