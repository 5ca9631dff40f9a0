-- The rows of `mine` that `theirs` does not hold, compared as a whole: nulls equal nulls.
SELECT mine.*
FROM mine
ANTI JOIN theirs ON mine IS NOT DISTINCT FROM theirs
