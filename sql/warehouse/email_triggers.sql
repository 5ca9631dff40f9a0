-- What email_triggers reads, by the contract's names. Another name in your mart? Edit it here.
-- COLUMNS('(?i)^(a|b)$') stands for a required column that may bear either name, in any case.
-- The empty last branch makes optional columns null where the mart has none.
SELECT
    COLUMNS('(?i)^(user_id)$') AS user_id,
    COLUMNS('(?i)^(segment)$') AS segment,
    COLUMNS('(?i)^(total_searches|lifetime_searches)$') AS total_searches,
    COLUMNS('(?i)^(total_conversions|lifetime_conversions)$') AS total_conversions,
    COLUMNS('(?i)^(lifetime_value|lifetime_revenue)$') AS lifetime_value,
    first_seen_at,
    last_seen_at,
    primary_platform AS platform,
    primary_country AS country,
    segmented_at AS built_at,
    -- All others, by their own names, for who names one in etl/mail/rules.py.
    COLUMNS(LAMBDA name: lower(name) NOT IN (
        'user_id', 'segment', 'total_searches', 'total_conversions', 'lifetime_value',
        'first_seen_at', 'last_seen_at', 'platform', 'country', 'built_at'
    ))
FROM (
    FROM mart_user_segments
    UNION ALL BY NAME
    SELECT
        NULL AS first_seen_at,
        NULL AS last_seen_at,
        NULL::VARCHAR AS primary_platform,
        NULL::VARCHAR AS primary_country,
        NULL AS segmented_at
    WHERE false
)
