-- Whose waiting mails are to be cancelled because no trigger is staged for them. Staged before:
-- changes.
SELECT user_id FROM pg_temp.changes WHERE reason = 'left_mart'
