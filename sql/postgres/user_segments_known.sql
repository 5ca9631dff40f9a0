-- What crm.user_segments holds of the mart's columns. Money has at most 14 digits, which a float8
-- keeps exactly and a client reads faster than a numeric.
SELECT
    user_id::text,
    segment::text,
    total_searches::bigint,
    total_conversions::bigint,
    lifetime_value::float8
FROM crm.user_segments
