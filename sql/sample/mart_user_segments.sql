-- The sample's mart_user_segments: $users rows with the column types dbt gives them.
-- A user's segment, visits and figures depend on the row's number and $epoch alone, so the same
-- $epoch gives the same users again; only ages and segmented_at follow $built_at, as with dbt.
CREATE TABLE main_marketing.mart_user_segments AS
WITH numbered AS (
    SELECT n, md5(n::VARCHAR) AS noise
    FROM range(1, $users::BIGINT + 1) AS numbers(n)
),
draws AS (  -- eight independent numbers per user, each from 0 up to 1
    SELECT
        n,
        ('0x' || noise[1:4])::INTEGER / 65536 AS segment_draw,
        ('0x' || noise[5:8])::INTEGER / 65536 AS last_visit,
        ('0x' || noise[9:12])::INTEGER / 65536 AS tenure,
        ('0x' || noise[13:16])::INTEGER / 65536 AS activity,
        ('0x' || noise[17:20])::INTEGER / 65536 AS bookings,
        ('0x' || noise[21:24])::INTEGER / 65536 AS basket,
        ('0x' || noise[25:28])::INTEGER / 65536 AS platform,
        ('0x' || noise[29:32])::INTEGER / 65536 AS country
    FROM numbered
),
segmented AS (
    SELECT
        *,
        CASE
            WHEN segment_draw < 0.45 THEN 'regular'
            WHEN segment_draw < 0.60 THEN 'new_user'
            WHEN segment_draw < 0.75 THEN 'at_risk'
            WHEN segment_draw < 0.90 THEN 'abandoned_search'
            ELSE 'high_value'
        END AS segment
    FROM draws
),
active AS (  -- days from the last visit to $epoch, and how much was searched
    -- No visit lies within a day of where a mail's occasion grows too old, so that a second
    -- sync some hours later finds nothing to take back.
    SELECT
        *,
        CASE segment
            WHEN 'new_user' THEN 12 * tenure * last_visit
            WHEN 'at_risk' THEN 30 + if(last_visit > 0.95, 155 + 30 * tenure, 140 * last_visit)
            WHEN 'abandoned_search' THEN if(last_visit > 0.95, 4 + 7 * tenure, 2 * last_visit)
            WHEN 'high_value' THEN 20 * last_visit * last_visit
            ELSE 29 * last_visit
        END AS last_seen_days,
        floor(CASE segment
            WHEN 'new_user' THEN 1 + 12 * activity
            WHEN 'at_risk' THEN 5 + 60 * activity
            WHEN 'abandoned_search' THEN 1 + 30 * activity
            WHEN 'high_value' THEN 40 + 360 * activity
            ELSE 3 + 100 * activity
        END) AS searches
    FROM segmented
),
booked AS (  -- a booking needs a search; days from the first visit to $epoch
    SELECT
        *,
        CASE segment
            WHEN 'new_user' THEN 12 * tenure
            ELSE last_seen_days + 15 + 700 * tenure
        END AS first_seen_days,
        least(searches, floor(CASE segment
            WHEN 'new_user' THEN 1.3 * bookings
            WHEN 'at_risk' THEN 5 * bookings
            WHEN 'abandoned_search' THEN 2 * bookings
            WHEN 'high_value' THEN 6 + 30 * bookings
            ELSE 6 * bookings
        END)) AS conversions
    FROM active
),
dated AS (
    SELECT
        *,
        $epoch::TIMESTAMP - to_seconds((86400 * first_seen_days)::BIGINT) AS first_seen_at,
        $epoch::TIMESTAMP - to_seconds((86400 * last_seen_days)::BIGINT) AS last_seen_at,
        $built_at::TIMESTAMPTZ AS segmented_at
    FROM booked
)
SELECT
    CASE n % 1000  -- one id in 200 is not plain ASCII
        WHEN 7 THEN 'usuário_'
        WHEN 207 THEN 'пользователь_'
        WHEN 407 THEN '用户_'
        WHEN 607 THEN 'kävijä_'
        WHEN 807 THEN 'user_🧳_'
        ELSE 'user_'
    END || format('{:06d}', n) AS user_id,
    segment,
    least(100, round(
        searches / 5 + 2 * conversions + greatest(0, 30 - last_seen_days)
    ))::BIGINT AS engagement_score,
    round(conversions * CASE segment
        WHEN 'high_value' THEN 350 + 1050 * basket
        ELSE 90 + 300 * basket
    END, 2)::DECIMAL(38, 2) AS lifetime_revenue,
    conversions::HUGEINT AS lifetime_conversions,
    searches::HUGEINT AS lifetime_searches,
    first_seen_at,
    last_seen_at,
    date_diff('second', last_seen_at, segmented_at AT TIME ZONE 'UTC') / 86400
        AS days_since_last_seen,
    date_diff('second', first_seen_at, segmented_at AT TIME ZONE 'UTC') / 86400
        AS account_age_days,
    CASE
        WHEN platform < 0.38 THEN 'ios'
        WHEN platform < 0.75 THEN 'android'
        ELSE 'web'
    END AS primary_platform,
    ['US', 'GB', 'DE', 'BR', 'FR', 'ES', 'JP', 'IN', 'MX', 'CA', 'AU', 'FI'][
        floor(12 * country * country)::INTEGER + 1
    ] AS primary_country,
    segmented_at
FROM dated
ORDER BY n;
