-- How many mails of the templates $1 (a JSON list) the queue has, by the segment that they were for.
SELECT template, payload ->> 'segment' AS segment, count(*) AS mails
FROM crm.email_queue
WHERE
    template IN (SELECT jsonb_array_elements_text($1::jsonb))
    AND status <> 'cancelled'
    AND payload ->> 'segment' IS NOT NULL
GROUP BY template, payload ->> 'segment'
ORDER BY template, mails DESC
