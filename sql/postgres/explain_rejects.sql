-- When rows of the user $1 were set aside last, and why.
SELECT sync, rejected_at, reasons
FROM etl.rejected_rows
WHERE key = $1
ORDER BY rejected_at DESC, id DESC
LIMIT 3
