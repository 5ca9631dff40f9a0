-- Have the merge leave cancelled mails as they are. Staged before: candidates.
UPDATE pg_temp.candidates SET blocked_by = 'open'
WHERE cancelled_id IS NOT NULL AND blocked_by IS NULL
