-- Why rows were rejected in the runs $1 (a JSON list of ids), the most frequent reason first.
SELECT r.sync, reason, count(*) AS rows
FROM etl.rejected_rows AS r
CROSS JOIN unnest(r.reasons) AS reason
WHERE r.run_id IN (SELECT jsonb_array_elements_text($1::jsonb))
GROUP BY r.sync, reason
ORDER BY r.sync, count(*) DESC, reason
