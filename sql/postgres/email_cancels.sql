-- How many waiting mails of each template are to be cancelled. Staged before: changes.
SELECT template, count(*) AS mails
FROM pg_temp.changes
WHERE reason IS NOT NULL
GROUP BY template
