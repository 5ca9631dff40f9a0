-- Whom does the session with pid $1 wait for? Their query is only told to roles that may see it.
SELECT
    'pid ' || a.pid || coalesce(' (' || nullif(a.application_name, '') || ')', '')
    || CASE
        WHEN a.query IN ('', '<insufficient privilege>') THEN ''
        ELSE ', ' || a.state || ': ' || left(regexp_replace(a.query, '\s+', ' ', 'g'), 100)
    END AS who
FROM pg_catalog.pg_stat_activity AS a
WHERE a.pid = ANY(pg_blocking_pids($1::int))
ORDER BY a.pid
