-- Who else runs sync $1 in a way that shard $2 of $3 (null: the whole mart) must not run beside.
-- application_name is `<sync> <pid>@<host>`.
SELECT
    a.application_name AS who,
    coalesce(
        to_char(a.backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC',
        'a time this role may not see'
    ) AS since
FROM pg_catalog.pg_locks AS l
JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
WHERE
    l.locktype = 'advisory'
    AND l.granted
    AND l.pid <> pg_backend_pid()
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
