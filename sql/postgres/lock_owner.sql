-- Who else runs sync $1 in a way that shard $2 of $3 (null: the whole mart) must not run beside.
-- Any login can take these locks, and call itself what it likes. State and time are null where this
-- role may not see them; the pid is, of a prepared transaction.
SELECT
    l.pid,
    a.usename AS role,
    a.application_name AS name,
    a.state,
    to_char(a.backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC' AS since
FROM pg_catalog.pg_locks AS l
LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
WHERE
    l.locktype = 'advisory'
    AND l.granted
    AND l.pid IS DISTINCT FROM pg_backend_pid()
    AND l.database = (
        SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = current_database()
    )
    AND CASE l.objsubid
        WHEN 1 THEN
            (l.classid::bigint << 32 | l.objid::bigint) = hashtextextended($1, 0)
            AND ($3::int IS NULL OR l.mode = 'ExclusiveLock')
            OR (l.classid::bigint << 32 | l.objid::bigint)
            = hashtextextended($1 || ' ' || $2::int || '/' || $3::int, 0)
        -- Cut into another number of shards, a mart has other users in each.
        WHEN 2 THEN
            l.classid::bigint = hashtext($1)::bigint & 4294967295
            AND l.objid::bigint <> $3::int
    END
ORDER BY a.backend_start
LIMIT 1
