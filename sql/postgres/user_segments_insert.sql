-- Insert all staged users into crm.user_segments, which has none: a third of the time of the merge.
INSERT INTO crm.user_segments (user_id, segment, total_searches, total_conversions, lifetime_value)
SELECT user_id, segment, total_searches, total_conversions, lifetime_value
FROM pg_temp.staging
