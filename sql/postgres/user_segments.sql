-- Merge the staged segments into crm.user_segments and count what that did.
-- Only new and different rows are written, so that synced_at means what it says and an
-- unchanged mart costs a join and nothing else. $1 is the shard that is staged, $2 of how many.
-- $3: new users go by a plain INSERT, which costs half of ON CONFLICT, but ends in a unique
-- violation when another session has just added one of them.
-- What was inserted and updated is what RETURNING answered, because a trigger may drop a row in
-- silence; `unwritten` counts those.
WITH changes AS MATERIALIZED (
    SELECT
        s.user_id,
        s.segment,
        s.total_searches,
        s.total_conversions,
        s.lifetime_value,
        t.user_id IS NULL AS is_new
    FROM pg_temp.staging AS s
    LEFT JOIN crm.user_segments AS t ON t.user_id = s.user_id
    WHERE
        t.user_id IS NULL
        OR (t.segment, t.total_searches, t.total_conversions, t.lifetime_value)
        IS DISTINCT FROM
        (s.segment, s.total_searches, s.total_conversions, s.lifetime_value)
),

added AS (
    INSERT INTO crm.user_segments (
        user_id, segment, total_searches, total_conversions, lifetime_value,
        segment_changed_at, synced_at
    )
    SELECT
        user_id, segment, total_searches, total_conversions, lifetime_value, now(), now()
    FROM changes
    -- On a first load in the order of the staging table, which is that of the key. Should two
    -- writers add the same users in another order and deadlock, the run is tried again.
    WHERE is_new AND $3::boolean
    RETURNING 1
),

written AS (
    INSERT INTO crm.user_segments AS t (
        user_id, segment, total_searches, total_conversions, lifetime_value,
        segment_changed_at, synced_at
    )
    SELECT
        user_id, segment, total_searches, total_conversions, lifetime_value, now(), now()
    FROM changes
    WHERE NOT (is_new AND $3::boolean)
    -- One order for all that update: two that meet wait for each other and never deadlock.
    ORDER BY user_id
    ON CONFLICT (user_id) DO UPDATE SET
        segment = excluded.segment,
        total_searches = excluded.total_searches,
        total_conversions = excluded.total_conversions,
        lifetime_value = excluded.lifetime_value,
        previous_segment = CASE
            WHEN t.segment IS DISTINCT FROM excluded.segment THEN t.segment
            ELSE t.previous_segment
        END,
        segment_changed_at = CASE
            WHEN t.segment IS DISTINCT FROM excluded.segment THEN excluded.segment_changed_at
            ELSE t.segment_changed_at
        END,
        synced_at = excluded.synced_at
    -- A new row has changed just now and had no segment before; one that was there lacks one of the
    -- two. (xmax cannot be read in a partitioned table.)
    RETURNING t.segment_changed_at = now() AS changed, t.previous_segment IS NULL AS is_first
),

answered AS (
    SELECT
        (SELECT count(*) FROM added) + count(*) FILTER (WHERE changed AND is_first) AS new_rows,
        count(*) FILTER (WHERE NOT (changed AND is_first)) AS old_rows,
        count(*) FILTER (WHERE changed AND NOT is_first) AS movers
    FROM written
)

SELECT
    new_rows AS inserted,
    old_rows AS updated,
    (SELECT count(*) FROM changes) - new_rows - old_rows AS unwritten,
    movers AS moved,
    -- What the churn guard compares with: counted only when it can matter.
    CASE
        WHEN movers > 0 THEN (
            SELECT count(*)
            FROM crm.user_segments AS t
            WHERE
                -- The hash of shard_of in sql/warehouse/session.sql.
                $2::int = 1
                OR ('x' || substr(md5(convert_to(t.user_id, 'UTF8')), 1, 8))::bit(32)::bigint
                % $2::int = $1::int
        )
        ELSE 0
    END AS target_rows
FROM answered
