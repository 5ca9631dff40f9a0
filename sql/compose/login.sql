-- The login of the syncs in the Compose stack: one that may sync, and read the status and what is
-- known of a user, no more.
-- Its service `roles` runs this as the owner, after sql/postgres/roles.sql. Safe to run again: the
-- password is then the one of the secret, and what else was granted to the login stays.
\getenv password SYNC_PASSWORD

SELECT 'CREATE ROLE searchflow_sync LOGIN'
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'searchflow_sync')
\gexec

ALTER ROLE searchflow_sync PASSWORD :'password';
GRANT searchflow_etl, searchflow_status, searchflow_support TO searchflow_sync;

-- This database is for the service alone: nobody else needs temporary tables in it.
REVOKE TEMPORARY ON DATABASE :"DBNAME" FROM PUBLIC;
