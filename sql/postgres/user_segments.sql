-- Merge the staged segments into crm.user_segments and count what that did, after the UPDATE of
-- user_segments_update.sql, whose rows it leaves alone.
-- Only new and different rows are written, so that synced_at means what it says; why that is asked
-- here once more: etl/warehouse/compare.py, `differing`.
-- $1: new users go by a plain INSERT, which costs half of ON CONFLICT, but ends in a unique
-- violation when another session has just added one of them.
-- Texts are compared as bytes, whatever collation the table has: COLLATE "C".
-- What was inserted and updated is what RETURNING answered, because a trigger may drop a row in
-- silence; `unwritten` counts those.
WITH changes AS MATERIALIZED (
    SELECT
        s.*,
        t.user_id IS NULL AS is_new,
        (t.segment COLLATE "C" IS DISTINCT FROM s.segment) AS is_other_segment
    FROM pg_temp.staging AS s
    LEFT JOIN crm.user_segments AS t ON t.user_id = s.user_id
    WHERE
        t.user_id IS NULL
        OR (
            t.synced_at <> now() -- a trigger may have changed what was written
            AND (t.segment COLLATE "C", t.total_searches, t.total_conversions, t.lifetime_value)
            IS DISTINCT FROM
            (s.segment, s.total_searches, s.total_conversions, s.lifetime_value)
        )
),

added AS (
    INSERT INTO crm.user_segments (
        user_id, segment, total_searches, total_conversions, lifetime_value
    )
    SELECT user_id, segment, total_searches, total_conversions, lifetime_value
    FROM changes
    -- On a first load in the order of the staging table, which is that of the key. Should two
    -- writers add the same users in another order and deadlock, the run is tried again.
    WHERE is_new AND $1::boolean
    RETURNING 1
),

upserted AS (
    INSERT INTO crm.user_segments AS t (
        user_id, segment, total_searches, total_conversions, lifetime_value
    )
    SELECT user_id, segment, total_searches, total_conversions, lifetime_value
    FROM changes
    WHERE NOT (is_new AND $1::boolean)
    -- One order for all that update: two that meet wait for each other and never deadlock.
    ORDER BY user_id
    ON CONFLICT (user_id) DO UPDATE SET
        segment = excluded.segment,
        total_searches = excluded.total_searches,
        total_conversions = excluded.total_conversions,
        lifetime_value = excluded.lifetime_value,
        previous_segment = CASE
            WHEN t.segment COLLATE "C" IS DISTINCT FROM excluded.segment THEN t.segment
            ELSE t.previous_segment
        END,
        segment_changed_at = CASE
            WHEN t.segment COLLATE "C" IS DISTINCT FROM excluded.segment THEN excluded.segment_changed_at
            ELSE t.segment_changed_at
        END,
        synced_at = excluded.synced_at
    -- Of a row that was there before, one of the two says so. (xmax cannot be read in a
    -- partitioned table.)
    RETURNING t.previous_segment IS NULL AND t.segment_changed_at = now() AS is_new
),

totals AS (
    SELECT
        (SELECT count(*) FROM added) + count(*) FILTER (WHERE is_new) AS inserted,
        count(*) FILTER (WHERE NOT is_new) AS updated
    FROM upserted
)

SELECT
    (SELECT inserted FROM totals) AS inserted,
    (SELECT updated FROM totals) AS updated,
    count(*) - (SELECT inserted + updated FROM totals) AS unwritten,
    count(*) FILTER (WHERE is_other_segment AND NOT is_new) AS changed_segment
FROM changes
