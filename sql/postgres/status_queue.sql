-- How many mails of each template are in which state, since when the oldest of each is there, and since
-- when the one that a worker has held longest is claimed.
SELECT
    status,
    template,
    count(*) AS mails,
    min(created_at) AS oldest_at,
    min(claimed_at) FILTER (WHERE status = 'processing') AS claimed_at
FROM crm.email_queue
GROUP BY status, template
ORDER BY
    array_position('{pending,processing,sent,failed,cancelled}', status), status, template
