-- Drop ledger rows of runs that ended more than $1 days ago; return how many, and how many were
-- due. For each sync the last run stays, for the status page, and of each shard the last ok one,
-- with which the guards compare. A row still `running` is the next run's to judge.
WITH kept AS (
    (
        SELECT DISTINCT ON (sync, shards, shard) sync, run_id, shard
        FROM etl.sync_runs
        WHERE status = 'ok'
        ORDER BY sync, shards, shard, started_at DESC
    )
    UNION
    (
        SELECT DISTINCT ON (sync) sync, run_id, shard
        FROM etl.sync_runs
        ORDER BY sync, started_at DESC
    )
),

due AS MATERIALIZED (
    SELECT r.run_id, r.sync, r.shard
    FROM etl.sync_runs AS r
    WHERE
        r.finished_at < now() - make_interval(secs => $1::float8 * 86400)
        AND r.status <> 'running'
        AND NOT EXISTS (
            SELECT
            FROM kept AS k
            WHERE k.sync = r.sync AND k.run_id = r.run_id AND k.shard = r.shard
        )
),

dropped AS (
    DELETE FROM etl.sync_runs AS r
    USING due AS d
    WHERE d.run_id = r.run_id AND d.sync = r.sync AND d.shard = r.shard
    RETURNING 1
)

SELECT
    (SELECT count(*) FROM dropped) AS rows,
    (SELECT count(*) FROM due) AS due
