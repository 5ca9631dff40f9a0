-- Drop rejected rows that are more than $1 days old, whatever became of their run; return how
-- many.
WITH dropped AS (
    DELETE FROM etl.rejected_rows
    WHERE rejected_at < now() - make_interval(secs => $1::float8 * 86400)
    RETURNING 1
)

SELECT count(*) AS rows FROM dropped
