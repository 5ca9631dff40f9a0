-- What the user $1 has unsubscribed from ('*': every mail), why and since when.
SELECT template, reason, since
FROM crm.email_suppressions
WHERE user_id = $1
ORDER BY template
