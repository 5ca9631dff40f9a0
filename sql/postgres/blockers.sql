-- Whom does the session with pid $1 wait for? Their statements are theirs: none is told. A prepared
-- transaction has the pid 0. State and time are null where this role may not see them.
SELECT
    b.pid,
    a.usename AS role,
    a.application_name AS name,
    a.state,
    to_char(a.xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC' AS since
FROM unnest(pg_blocking_pids($1::int)) AS b (pid)
LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = b.pid
GROUP BY b.pid, a.usename, a.application_name, a.state, a.xact_start
ORDER BY b.pid
