-- Show at most $1 of the users whom the merges are to write: what becomes of each (insert, update,
-- delete), and of each column that changes the old and the new value, as JSON.
-- Staged before: staging, gone (users to delete).
--
-- A fair sample: the kinds of change take turns, and of updates the sets of columns that change.
-- Within one kind the order is that of a hash, which has nothing to do with the names of users.
WITH users AS (
    SELECT user_id FROM pg_temp.staging
    UNION ALL
    SELECT user_id FROM pg_temp.gone
),

changes AS (
    SELECT
        u.user_id,
        CASE
            WHEN s.user_id IS NULL THEN 'delete'
            WHEN t.user_id IS NULL THEN 'insert'
            ELSE 'update'
        END AS change,
        array_remove(ARRAY[
            CASE WHEN s.segment COLLATE "C" IS DISTINCT FROM t.segment THEN 'segment' END,
            CASE WHEN s.total_searches IS DISTINCT FROM t.total_searches THEN 'total_searches' END,
            CASE
                WHEN s.total_conversions IS DISTINCT FROM t.total_conversions
                    THEN 'total_conversions'
            END,
            CASE WHEN s.lifetime_value IS DISTINCT FROM t.lifetime_value THEN 'lifetime_value' END
        ], NULL) AS columns
    FROM users AS u
    LEFT JOIN pg_temp.staging AS s ON s.user_id = u.user_id
    LEFT JOIN crm.user_segments AS t ON t.user_id = u.user_id
),

numbered AS (
    SELECT
        *,
        hashtextextended(user_id, 0) AS hash,
        row_number() OVER (
            PARTITION BY change, columns ORDER BY hashtextextended(user_id, 0)
        ) AS number
    FROM changes
    WHERE columns <> '{}'
),

sample AS (
    SELECT
        user_id,
        change,
        columns,
        row_number() OVER (PARTITION BY change ORDER BY number, hash) AS turn
    FROM numbered
    WHERE number <= $1::int
    ORDER BY turn, change DESC
    LIMIT $1::int
)

SELECT
    c.user_id,
    c.change,
    (
        SELECT json_object_agg(
            n.name,
            jsonb_build_object('old', to_jsonb(t) -> n.name, 'new', to_jsonb(s) -> n.name)
            ORDER BY n.place
        )::text
        FROM unnest(c.columns) WITH ORDINALITY AS n (name, place)
    ) AS columns
FROM sample AS c
LEFT JOIN pg_temp.staging AS s ON s.user_id = c.user_id
LEFT JOIN crm.user_segments AS t ON t.user_id = c.user_id
ORDER BY array_position('{insert,update,delete}', c.change), c.turn
