-- How many staged users crm.user_segments does not hold as they were staged. They are looked for
-- only where the table is not that of schema.sql: a trigger may change or delete what RETURNING
-- answered, a type other than the staged one may round it, a collation may take two keys for one, a
-- view may hide it.
WITH tables AS (
    SELECT 'crm.user_segments'::regclass AS oid
    UNION
    SELECT relid FROM pg_partition_tree('crm.user_segments'::regclass)
),

other_columns AS (
    SELECT s.attname
    FROM pg_catalog.pg_attribute AS s
    WHERE
        s.attrelid = 'pg_temp.staging'::regclass
        AND s.attnum > 0
        AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_attribute AS a
            LEFT JOIN pg_catalog.pg_collation AS o ON o.oid = a.attcollation
            WHERE
                a.attrelid = 'crm.user_segments'::regclass
                AND a.attname = s.attname
                AND coalesce(o.collisdeterministic, true)
                AND (
                    format_type(a.atttypid, a.atttypmod) = format_type(s.atttypid, s.atttypmod)
                    -- Staged as a numeric of any scale.
                    OR (
                        a.attname = 'lifetime_value'
                        AND format_type(a.atttypid, a.atttypmod) = 'numeric(14,2)'
                    )
                )
        )
),

is_plain AS (
    SELECT
        NOT EXISTS (SELECT FROM other_columns)
        AND EXISTS (
            SELECT FROM pg_catalog.pg_class AS c
            WHERE c.oid = 'crm.user_segments'::regclass AND c.relkind IN ('r', 'p')
        )
        AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_trigger AS g
            JOIN tables AS t ON t.oid = g.tgrelid
            WHERE NOT g.tgisinternal AND g.tgenabled <> 'D'
        ) AS yes
)

SELECT count(*) AS rows
FROM pg_temp.staging AS s
WHERE
    NOT (SELECT p.yes FROM is_plain AS p)
    AND NOT EXISTS (
        SELECT FROM crm.user_segments AS t
        WHERE
            t.user_id COLLATE pg_catalog."C" = s.user_id
            AND (
                t.segment COLLATE pg_catalog."C",
                t.total_searches,
                t.total_conversions,
                t.lifetime_value
            )
            IS NOT DISTINCT FROM
            (s.segment, s.total_searches, s.total_conversions, s.lifetime_value)
    )
