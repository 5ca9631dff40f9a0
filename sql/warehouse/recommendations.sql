-- What recommendations reads, by the contract's names. Another name in your mart? Edit it here.
-- COLUMNS('(?i)^(a|b)$') stands for a required column that may bear either name, in any case.
-- The empty last branch makes optional columns null where the mart has none.
SELECT
    COLUMNS('(?i)^(user_id)$') AS user_id,
    COLUMNS('(?i)^(recommended_destination|destination)$') AS destination,
    COLUMNS('(?i)^(recommendation_score|score)$') AS score,
    rank,
    generated_at AS built_at
FROM (
    FROM mart_recommendations
    UNION ALL BY NAME
    SELECT NULL AS rank, NULL AS generated_at WHERE false
)
