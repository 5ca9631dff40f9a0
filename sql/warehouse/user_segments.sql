-- What user_segments reads, by the contract's names. Another name in your mart? Edit it here.
-- COLUMNS('^(a|b)$') stands for a required column that may bear either name.
-- The empty last branch makes optional columns null where the mart has none.
SELECT
    COLUMNS('^(user_id)$') AS user_id,
    COLUMNS('^(segment)$') AS segment,
    COLUMNS('^(total_searches|lifetime_searches)$') AS total_searches,
    COLUMNS('^(total_conversions|lifetime_conversions)$') AS total_conversions,
    COLUMNS('^(lifetime_value|lifetime_revenue)$') AS lifetime_value,
    segmented_at AS built_at
FROM (
    FROM mart_user_segments
    UNION ALL BY NAME
    SELECT NULL AS segmented_at WHERE false
)
