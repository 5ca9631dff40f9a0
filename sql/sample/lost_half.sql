-- What a source that came in part leaves of mart_user_segments: four rows of ten.
DELETE FROM main_marketing.mart_user_segments
WHERE ('0x' || md5(coalesce(user_id, ''))[1:4])::INTEGER % 5 < 3;
