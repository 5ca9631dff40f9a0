-- What every connection of the service sets for itself.
SELECT
    set_config('timezone', 'UTC', false),
    -- A lock somebody else holds for this long is a reason to stop and say so.
    set_config('lock_timeout', '30s', false),
    -- A killed client's locks are gone within a second, not when its statement ends.
    set_config('client_connection_check_interval', '1s', false),
    -- The session sits idle, lock in hand, while the warehouse is read.
    set_config('idle_session_timeout', '0', false),
    set_config('idle_in_transaction_session_timeout', '0', false)
