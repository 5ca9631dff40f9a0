-- How many mails of the queue, of templates in the rules, have a visit that somebody knew; $1 is the
-- episode of those that have none. Staged before: rules.
SELECT count(*) AS visits_queued
FROM crm.email_queue AS q
JOIN pg_temp.rules AS r ON r.template = q.template
WHERE q.episode_at <> $1::timestamptz
