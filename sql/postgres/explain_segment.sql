-- What sales and support see of the user $1.
SELECT
    user_id,
    segment,
    total_searches,
    total_conversions,
    lifetime_value::float8 AS lifetime_value,
    previous_segment,
    segment_changed_at::timestamptz AS segment_changed_at,
    synced_at::timestamptz AS synced_at
FROM crm.user_segments
WHERE user_id = $1
