-- Drop rejected rows that are more than $1 days old, whatever became of their run; return how
-- many, and how many were due.
WITH due AS (
    SELECT
    FROM etl.rejected_rows
    WHERE rejected_at < now() - make_interval(secs => $1::float8 * 86400)
),

dropped AS (
    DELETE FROM etl.rejected_rows
    WHERE rejected_at < now() - make_interval(secs => $1::float8 * 86400)
    RETURNING 1
)

SELECT
    (SELECT count(*) FROM dropped) AS rows,
    (SELECT count(*) FROM due) AS due
