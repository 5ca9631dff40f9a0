"""The bench's marts: the same users and figures every time, and what a load of them must give."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from demo import sample

# Each mart is made of another, which is attached as `before`.
USERS = """
    CREATE SCHEMA main_marketing;
    CREATE TABLE main_marketing.mart_user_segments AS
    FROM before.main_marketing.mart_user_segments;
"""

# Five for every user, the best with score 1.0; cities and scores as the sample has them, rows as a
# window function leaves them, which ranks them in tests/dbt_project as well: each user's together.
RECOMMENDATIONS = """
    CREATE TABLE main_marketing.mart_recommendations AS
    WITH cities AS (
        SELECT list(DISTINCT recommended_destination ORDER BY recommended_destination) AS names
        FROM before.main_marketing.mart_recommendations
    ),
    draws AS (
        SELECT
            user_id,
            ('0x' || md5(user_id)[1:4])::INTEGER AS first,
            ('0x' || md5(user_id)[5:8])::INTEGER / 65536 AS decay
        FROM main_marketing.mart_user_segments
    )
    SELECT
        user_id,
        names[1 + (first + 7 * place) % len(names)] AS recommended_destination,
        round(pow(0.70 + 0.28 * decay, place), 4) AS recommendation_score,
        99 - place AS supporting_users,
        row_number() OVER (PARTITION BY user_id ORDER BY recommendation_score DESC) AS rank,
        now() AS generated_at
    FROM draws, cities, range(5) AS places(place)
"""

# The same rows in no order.
SCATTERED = """
    CREATE TABLE main_marketing.mart_recommendations AS
    FROM before.main_marketing.mart_recommendations ORDER BY hash(user_id, rank)
"""

# Another mart of the same users; the segments stay, so that no guard has a word to say.
SEARCHED = """
    CREATE SCHEMA main_marketing;
    CREATE TABLE main_marketing.mart_user_segments AS
    SELECT * REPLACE (
        (lifetime_searches + (rowid % {every} = 0)::INTEGER)::HUGEINT AS lifetime_searches
    )
    FROM before.main_marketing.mart_user_segments
"""

# So many users: the first of another mart, or each of them several times over.
SIZED = """
    CREATE SCHEMA main_marketing;
    CREATE TABLE main_marketing.mart_user_segments AS
    SELECT * REPLACE (user_id || if(copy = 0, '', '-' || copy) AS user_id)
    FROM range({copies}) AS copies(copy), before.main_marketing.mart_user_segments
    LIMIT {users};
"""

# A number that tells every row, whatever their order; DIGEST of targets.py is it in Postgres.
DIGEST = """
    SELECT count(*) || ' ' || coalesce(sum(('0x' || md5(concat_ws('|',
        user_id, segment, lifetime_searches, lifetime_conversions, lifetime_revenue::DECIMAL(14, 2)
    ))[1:8])::UINTEGER), 0)
    FROM (FROM main_marketing.mart_user_segments LIMIT {rows})
"""

VALUES = """
    SELECT
        user_id,
        list(recommended_destination ORDER BY rank) AS destinations,
        round(avg(recommendation_score), 4) AS score
    FROM main_marketing.mart_recommendations
    WHERE recommendation_score > 0.5
        AND user_id IN (
            SELECT user_id FROM main_marketing.mart_user_segments ORDER BY md5(user_id) LIMIT 200
        )
    GROUP BY user_id
"""


def build(folder: Path, users: int, sizes: Sequence[int]) -> dict[str, Path]:
    """Write the marts: first, also scattered; one user in a hundred changed, all; ten; sizes."""
    names = ("sample", "ten_sample", "first", "scattered", "one_percent", "all", "ten")
    names += tuple(map(str, sizes))
    marts = {name: folder / f"{name}.duckdb" for name in names}
    now = datetime.now(UTC)
    sample.build(marts["sample"], users, epoch=now, built_at=now)
    sample.build(marts["ten_sample"], 10, epoch=now, built_at=now)
    _derive(marts["first"], marts["sample"], USERS + RECOMMENDATIONS)
    _derive(marts["scattered"], marts["first"], USERS + SCATTERED)
    _derive(marts["one_percent"], marts["first"], SEARCHED.format(every=100))
    _derive(marts["all"], marts["one_percent"], SEARCHED.format(every=1))
    _derive(marts["ten"], marts["ten_sample"], USERS)
    for size in sizes:
        sized = SIZED.format(users=size, copies=-(-size // users))
        _derive(marts[str(size)], marts["first"], sized + RECOMMENDATIONS)
    return marts


def digest(mart: Path, rows: int) -> str:
    """How many rows there are and a checksum over the first `rows` of them."""
    with duckdb.connect(str(mart), read_only=True) as connection:
        (digest,) = connection.sql(DIGEST.format(rows=rows)).fetchall()[0]
        return str(digest)


def some_values(mart: Path) -> dict[str, tuple[list[str], float]]:
    """The destinations and the score of 200 users, by user_id."""
    with duckdb.connect(str(mart), read_only=True) as connection:
        rows = connection.sql(VALUES).fetchall()
        return {user_id: (destinations, score) for user_id, destinations, score in rows}


def _derive(mart: Path, before: Path, sql: str) -> None:
    """Write a mart in a format that DuckDB 1.5 reads as well, so that all read the same file."""
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{before}' AS before (READ_ONLY)")
        connection.execute(f"ATTACH '{mart}' AS mart (STORAGE_VERSION 'v1.5.0')")
        connection.execute("USE mart")
        connection.execute(sql)
