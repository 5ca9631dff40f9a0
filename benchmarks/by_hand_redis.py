"""By hand for Redis: redis-py's pipeline with `set(ex=)`, a thousand keys at a time.

usage: by_hand_redis.py PORT DB WAREHOUSE
"""

import json
import sys
from itertools import groupby

import duckdb
import redis

port, db, warehouse = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
KEYS, MOST, DAY = 1_000, 10, 24 * 60 * 60


def fetched(result):
    while rows := result.fetchmany(10_000):
        yield from rows


with duckdb.connect(warehouse, read_only=True) as mart, redis.Redis(port=port, db=db) as target:
    rows = mart.execute(
        "SELECT user_id, recommended_destination, recommendation_score"
        " FROM main_marketing.mart_recommendations WHERE recommendation_score > 0.5"
        " ORDER BY user_id, rank"
    )
    pipeline = target.pipeline(transaction=False)
    for user_id, ranked in groupby(fetched(rows), key=lambda row: row[0]):
        best = list(ranked)[:MOST]
        score = round(sum(row[2] for row in best) / len(best), 4)
        value = {"destinations": [row[1] for row in best], "score": score}
        pipeline.set(f"reco:{user_id}", json.dumps(value), ex=DAY)
        if len(pipeline) >= KEYS:
            pipeline.execute()
    pipeline.execute()
