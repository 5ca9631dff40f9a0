-- Delete from crm.user_segments, in shard $1 of $2, the users who left the mart. A user whose
-- row was rejected has not left. Runs after the merge, over the same staging table.
WITH present AS (
    SELECT user_id FROM pg_temp.staging
    UNION ALL
    SELECT user_id FROM pg_temp.rejected
),

target AS (
    SELECT t.user_id
    FROM crm.user_segments AS t
    -- The hash of in_shard in sql/warehouse/session.sql.
    WHERE $2::int = 1 OR ('x' || substr(md5(t.user_id), 1, 8))::bit(32)::bigint % $2::int = $1::int
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
    (SELECT count(*) FROM target) AS target_rows
