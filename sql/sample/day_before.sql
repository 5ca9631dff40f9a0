-- Marts that dbt built a day before: what they say of their build time.
UPDATE main_marketing.mart_user_segments SET segmented_at = segmented_at - INTERVAL 1 DAY;

UPDATE main_marketing.mart_recommendations SET generated_at = generated_at - INTERVAL 1 DAY;
