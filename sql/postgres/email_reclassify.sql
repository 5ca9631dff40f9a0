-- Correct the staged changes for users who are in the mart after all.
-- Staged before: changes, and known (such users; rejected: their row broke the contract, and nobody
-- knows which segment they are in).
WITH undecided AS (
    DELETE FROM pg_temp.changes AS c
    USING pg_temp.known AS k
    WHERE k.user_id = c.user_id AND k.rejected AND c.reason = 'left_mart'
)

UPDATE pg_temp.changes AS c
SET reason = 'left_segment'
FROM pg_temp.known AS k
WHERE k.user_id = c.user_id AND NOT k.rejected AND c.reason = 'left_mart'
