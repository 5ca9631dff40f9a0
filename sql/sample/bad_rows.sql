-- Three rows that break the contract, beside the good ones: money below zero, no segment, no id.
INSERT INTO main_marketing.mart_user_segments
SELECT * REPLACE ('user_010001' AS user_id, -20 AS lifetime_revenue)
FROM main_marketing.mart_user_segments
WHERE user_id = 'user_000001'
UNION ALL
SELECT * REPLACE ('user_010002' AS user_id, NULL AS segment)
FROM main_marketing.mart_user_segments
WHERE user_id = 'user_000001'
UNION ALL
SELECT * REPLACE (NULL AS user_id)
FROM main_marketing.mart_user_segments
WHERE user_id = 'user_000001';
