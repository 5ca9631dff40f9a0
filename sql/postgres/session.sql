-- What every connection of the service sets for itself. $1 and $2 are milliseconds that a statement
-- may take and that it may wait for a lock.
SELECT
    pg_backend_pid() AS pid,
    set_config('timezone', 'UTC', false),
    set_config('statement_timeout', $1, false),
    set_config('lock_timeout', $2, false),
    -- A killed client's locks are gone within a second, not when its statement ends; those of one
    -- behind a cut network within half a minute.
    set_config('client_connection_check_interval', '1s', false),
    set_config('tcp_keepalives_idle', '10', false),
    set_config('tcp_keepalives_interval', '5', false),
    set_config('tcp_keepalives_count', '3', false),
    set_config('tcp_user_timeout', '25s', false),
    -- The session sits idle, lock in hand, while the warehouse is read.
    set_config('idle_session_timeout', '0', false),
    set_config('idle_in_transaction_session_timeout', '0', false)
