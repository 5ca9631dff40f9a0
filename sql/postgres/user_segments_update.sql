-- Update the users of crm.user_segments whose staged segment is new to them, and count what that
-- did: two fifths of the time that ON CONFLICT takes. `remaining` are the staged rows that it did not
-- write: of new users, of those who have just that segment, and what a trigger dropped in silence.
-- Whether a row differs is asked here once more: see etl/warehouse/compare.py, `differing`.
WITH updated AS (
    UPDATE crm.user_segments AS t SET
        segment = s.segment,
        total_searches = s.total_searches,
        total_conversions = s.total_conversions,
        lifetime_value = s.lifetime_value,
        previous_segment = CASE
            WHEN t.segment COLLATE "C" IS DISTINCT FROM s.segment THEN t.segment
            ELSE t.previous_segment
        END,
        segment_changed_at = CASE
            WHEN t.segment COLLATE "C" IS DISTINCT FROM s.segment THEN now()
            ELSE t.segment_changed_at
        END,
        synced_at = now()
    FROM pg_temp.staging AS s
    WHERE
        t.user_id = s.user_id
        AND (t.segment COLLATE "C", t.total_searches, t.total_conversions, t.lifetime_value)
        IS DISTINCT FROM
        (s.segment, s.total_searches, s.total_conversions, s.lifetime_value)
    RETURNING t.segment_changed_at = now() AS is_other_segment
)

SELECT
    count(*) AS updated,
    count(*) FILTER (WHERE is_other_segment) AS changed_segment,
    (SELECT count(*) FROM pg_temp.staging) - count(*) AS remaining,
    0 AS unwritten
FROM updated
