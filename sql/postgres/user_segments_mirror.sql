-- Delete from crm.user_segments the staged users, who left the mart; `unwritten` counts those whom
-- a trigger kept. Locked first, because a user whom somebody else deletes meanwhile is not kept.
WITH leavers AS MATERIALIZED (
    SELECT t.user_id
    FROM crm.user_segments AS t
    JOIN pg_temp.gone AS g ON g.user_id = t.user_id
    FOR UPDATE OF t
),

deleted AS (
    DELETE FROM crm.user_segments AS t
    USING leavers AS l
    WHERE t.user_id = l.user_id
    RETURNING 1
)

SELECT
    (SELECT count(*) FROM deleted) AS deleted,
    (SELECT count(*) FROM leavers) - (SELECT count(*) FROM deleted) AS unwritten
