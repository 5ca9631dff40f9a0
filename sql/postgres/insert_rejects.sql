-- Move the staged rejects of run $1, sync $2 to where operators look for them; return how many.
WITH kept AS (
    INSERT INTO etl.rejected_rows (run_id, sync, key, reasons, row)
    SELECT $1, $2, key, reasons, row::jsonb
    FROM pg_temp.rejects
    RETURNING 1
)

SELECT count(*) AS rows FROM kept
