-- Who holds the lock of sync $1 or of its shard $2: application_name is `<sync> <pid>@<host>`.
SELECT
    a.application_name AS who,
    to_char(a.backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC' AS since
FROM pg_locks AS l
JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE
    l.locktype = 'advisory'
    AND l.granted
    AND l.objsubid = 1
    AND l.pid <> pg_backend_pid()
    AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
    AND (l.classid::bigint << 32 | l.objid::bigint) IN (
        hashtextextended($1, 0), hashtextextended($1 || ' ' || $2::text, 0)
    )
ORDER BY a.backend_start
LIMIT 1
