-- Every mail of the user $1, the newest first.
SELECT
    template,
    status,
    reason,
    priority,
    attempts,
    episode_at,
    created_at,
    updated_at,
    claimed_at,
    sent_at,
    nullif(not_before, 'epoch') AS not_before,
    expires_at
FROM crm.email_queue
WHERE user_id = $1
ORDER BY created_at DESC, id DESC
