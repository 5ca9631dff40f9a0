-- Both marts as they may have stood getvariable('days') days before the sample attached as `today`:
-- users who came since are missing; others searched and spent less, or were in another segment.
CREATE SCHEMA main_marketing;

CREATE TABLE main_marketing.mart_user_segments AS
WITH users AS (
    SELECT
        *,
        days_since_last_seen < getvariable('days') AS came_back,
        ('0x' || md5(user_id)[1:4])::INTEGER % 40 AS luck
    FROM today.main_marketing.mart_user_segments
    WHERE account_age_days > getvariable('days')
)
SELECT * EXCLUDE (came_back, luck) REPLACE (
    CASE
        WHEN account_age_days < 14 + getvariable('days') THEN 'new_user'
        WHEN segment = 'at_risk' AND days_since_last_seen < 30 + getvariable('days') THEN 'regular'
        WHEN came_back AND luck < getvariable('days') AND luck % 3 = 0 THEN 'at_risk'
        WHEN came_back AND luck < getvariable('days') THEN 'regular'
        ELSE segment
    END AS segment,
    greatest(0, lifetime_searches - if(came_back, luck % 7, 0)) AS lifetime_searches,
    (lifetime_revenue * if(came_back AND luck < 9, 0.9, 1))::DECIMAL(38, 2) AS lifetime_revenue
)
FROM users;

CREATE TABLE main_marketing.mart_recommendations AS
SELECT * REPLACE (
    if(ends_with(user_id, '7'), round(recommendation_score ** 1.1, 4), recommendation_score)
        AS recommendation_score
)
FROM today.main_marketing.mart_recommendations
WHERE user_id IN (SELECT user_id FROM main_marketing.mart_user_segments);
