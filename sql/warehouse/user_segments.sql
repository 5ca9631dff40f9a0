-- What user_segments reads, by the contract's names. Another name in your mart? Edit it here.
-- COLUMNS('(?i)^(a|b)$') stands for a required column that may bear either name, in any case.
-- The empty last branch makes optional columns null where the mart has none.
SELECT
    COLUMNS('(?i)^(user_id)$') AS user_id,
    COLUMNS('(?i)^(segment)$') AS segment,
    COLUMNS('(?i)^(total_searches|lifetime_searches)$') AS total_searches,
    COLUMNS('(?i)^(total_conversions|lifetime_conversions)$') AS total_conversions,
    COLUMNS('(?i)^(lifetime_value|lifetime_revenue)$') AS lifetime_value,
    segmented_at AS built_at
FROM (
    FROM mart_user_segments
    UNION ALL BY NAME
    SELECT NULL AS segmented_at WHERE false
)
