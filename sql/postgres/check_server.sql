-- What the server is and how we came to it. `options` is whether it took those of our connection,
-- which a pooler may not hand on.
SELECT
    split_part(current_setting('server_version'), ' ', 1) AS version,
    current_setting('server_version_num')::int AS number,
    s.version AS tls,
    current_setting('server_encoding') AS encoding,
    pg_is_in_recovery() AS is_replica,
    current_setting('transaction_read_only')::boolean AS read_only,
    host(inet_server_addr()) AS address,
    inet_server_port() AS port,
    (
        SELECT p.reset_val = 'pg_catalog,pg_temp'
        FROM pg_catalog.pg_settings AS p
        WHERE p.name = 'search_path'
    ) AS options
FROM pg_catalog.pg_stat_ssl AS s
WHERE s.pid = pg_backend_pid()
