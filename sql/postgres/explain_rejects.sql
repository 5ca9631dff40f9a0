-- When rows of the user $1 were set aside last, how many, and why.
SELECT sync, rejected_at, reasons, count(*) AS rows
FROM etl.rejected_rows
WHERE key = $1
GROUP BY sync, rejected_at, reasons
ORDER BY rejected_at DESC, sync, reasons
LIMIT 3
