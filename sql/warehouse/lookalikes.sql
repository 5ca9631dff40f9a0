-- The five tables and columns of the warehouse whose names look most like one of the tables $1 or one
-- of the columns $2, two lists of names; and the tables nearest to one of $1 that do not.
WITH names AS (
    SELECT
        t.table_schema || '.' || t.table_name AS place,
        t.table_name AS name,
        $1 AS wanted,
        true AS is_table
    FROM system.information_schema.tables AS t
    WHERE t.table_catalog NOT IN ('system', 'temp')
    UNION ALL
    SELECT c.table_schema || '.' || c.table_name || '.' || c.column_name, c.column_name, $2, false
    FROM system.information_schema.columns AS c
    WHERE c.table_catalog NOT IN ('system', 'temp')
),

pairs AS (SELECT place, name, is_table, unnest(wanted) AS wanted FROM names),

scored AS (
    SELECT
        place,
        is_table,
        max(greatest(
            jaro_winkler_similarity(lower(name), lower(wanted)),
            -- `score` and `recommendation_score`, `search_count` and `total_searches`: a word of
            -- one is in the other.
            CASE WHEN
                contains(lower(name), lower(wanted))
                OR len([
                    w FOR w IN string_split(lower(name), '_')
                    IF len(w) > 3 AND contains(lower(wanted), w)
                ]) > 0
                THEN 0.85 ELSE 0 END
        )) AS likeness
    FROM pairs
    GROUP BY place, is_table
)

SELECT place, likeness >= 0.8 AS is_alike
FROM scored
WHERE likeness >= 0.8 OR is_table
ORDER BY likeness DESC, place
LIMIT 5
