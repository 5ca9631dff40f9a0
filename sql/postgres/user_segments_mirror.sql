-- Delete from crm.user_segments, in shard $1 of $2, the users who left the mart. A user whose
-- row was rejected has not left. Runs after the merge, which inserted $3 users, over the same
-- staging table. `unwritten` counts those whom a trigger kept.
WITH present AS (
    SELECT user_id FROM pg_temp.staging
    UNION ALL
    SELECT user_id FROM pg_temp.rejected
),

target AS (
    SELECT t.user_id
    FROM crm.user_segments AS t
    WHERE
        -- The hash of shard_of in sql/warehouse/session.sql.
        $2::int = 1
        OR ('x' || substr(md5(convert_to(t.user_id, 'UTF8')), 1, 8))::bit(32)::bigint % $2::int
        = $1::int
),

-- Locked, because a user whom somebody else deletes meanwhile is not one who was kept.
leavers AS MATERIALIZED (
    SELECT t.user_id
    FROM crm.user_segments AS t
    JOIN target ON target.user_id = t.user_id
    WHERE NOT EXISTS (SELECT FROM present WHERE present.user_id = t.user_id)
    FOR UPDATE OF t
),

gone AS (
    DELETE FROM crm.user_segments AS t
    USING leavers
    WHERE t.user_id = leavers.user_id
    RETURNING 1
)

SELECT
    (SELECT count(*) FROM gone) AS deleted,
    (SELECT count(*) FROM leavers) - (SELECT count(*) FROM gone) AS unwritten,
    -- As it was before the run.
    (SELECT count(*) FROM target) - $3::bigint AS target_rows
