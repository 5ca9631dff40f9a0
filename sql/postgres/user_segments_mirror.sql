-- Delete from crm.user_segments, in shard $1 of $2, the users who left the mart. A user whose
-- row was rejected has not left. Runs after the merge, which inserted $3 users, over the same
-- staging table.
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

gone AS (
    DELETE FROM crm.user_segments AS t
    USING target
    WHERE
        t.user_id = target.user_id
        AND NOT EXISTS (SELECT FROM present WHERE present.user_id = t.user_id)
    RETURNING t.user_id
)

SELECT
    (SELECT count(*) FROM gone) AS deleted,
    -- As it was before the run.
    (SELECT count(*) FROM target) - $3::bigint AS target_rows
