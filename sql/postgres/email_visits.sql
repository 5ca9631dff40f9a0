-- How many mails of the queue, of the templates $2 (a JSON list), have a visit that somebody knew; $1
-- is the episode of those that have none.
SELECT count(*) AS visits_queued
FROM crm.email_queue
WHERE
    template IN (SELECT jsonb_array_elements_text($2::jsonb))
    AND episode_at <> $1::timestamptz
