-- How many mails of each template are in which state, and since when the oldest of each is there.
SELECT status, template, count(*) AS mails, min(created_at) AS oldest_at
FROM crm.email_queue
GROUP BY status, template
ORDER BY
    array_position('{pending,processing,sent,failed,cancelled}', status), status, template
