-- What every transaction of the service sets, for its own length, whatever server, database, role
-- and environment say. $1 and $2 are milliseconds that a statement may take and that it may wait for a
-- lock. Only the encoding must come with the connection itself (see etl/postgres/login.py).
--
-- Names have their schema here because search_path is not set yet. A setting that this version of
-- the server does not know is left out; so is one that has its value already, because only a
-- superuser may set session_replication_role.
SELECT
    pg_catalog.pg_backend_pid() AS pid,
    pg_catalog.count(pg_catalog.set_config(s.name, s.value, true)) AS changed
FROM (
    VALUES
    -- A function of our SQL is Postgres's own, whoever may make others.
    ('search_path', 'pg_catalog, pg_temp'),
    -- A policy that would hide rows is an error, not fewer rows.
    ('row_security', 'off'),
    ('session_replication_role', 'origin'),
    ('default_transaction_isolation', 'read committed'),
    ('default_transaction_deferrable', 'off'),
    -- A failed statement ends its transaction, not the session.
    ('exit_on_error', 'off'),
    ('default_table_access_method', 'heap'),
    -- What is read and written as text.
    ('timezone', 'UTC'),
    ('datestyle', 'ISO, MDY'),
    ('intervalstyle', 'postgres'),
    ('extra_float_digits', '1'),
    ('bytea_output', 'hex'),
    ('standard_conforming_strings', 'on'),
    ('array_nulls', 'on'),
    ('transform_null_equals', 'off'),
    ('client_min_messages', 'error'),
    -- What was just read back is in memory: some rows of it are found by their keys. A million rows
    -- are joined in memory, too; more than that is left to whoever set it.
    ('random_page_cost', '1.1'),
    ('work_mem', '64MB'),
    ('statement_timeout', $1),
    ('lock_timeout', $2),
    -- The session sits idle, lock in hand, while the warehouse is read.
    ('idle_session_timeout', '0'),
    ('idle_in_transaction_session_timeout', '0'),
    ('transaction_timeout', '0'), -- Postgres 17
    -- A killed client's locks are gone within a second, not when its statement ends; those of one
    -- behind a cut network within half a minute.
    ('client_connection_check_interval', '1s'),
    ('tcp_keepalives_idle', '10'),
    ('tcp_keepalives_interval', '5'),
    ('tcp_keepalives_count', '3'),
    ('tcp_user_timeout', '25s')
) AS s (name, value)
WHERE
    CASE s.name
        WHEN 'work_mem' THEN
            pg_catalog.pg_size_bytes(pg_catalog.current_setting(s.name))
            OPERATOR(pg_catalog.<) pg_catalog.pg_size_bytes(s.value)
        ELSE pg_catalog.current_setting(s.name, true) OPERATOR(pg_catalog.<>) s.value
    END
