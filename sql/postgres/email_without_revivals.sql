-- Have the merge leave cancelled mails as they are. Staged before: decisions.
UPDATE pg_temp.decisions
SET is_queued = false, reason = nullif(reason, 'superseded')
WHERE revived_id IS NOT NULL AND is_queued
