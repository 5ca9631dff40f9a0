-- The sample's mart_recommendations: up to ten cities for each user of mart_user_segments,
-- best first, the best with score 1.0; about 3 % of the users have none.
CREATE TABLE main_marketing.mart_recommendations AS
WITH cities AS (
    SELECT [
        'Paris', 'London', 'Barcelona', 'New York', 'Rome', 'Tokyo', 'Lisbon', 'Amsterdam',
        'Miami', 'Cancún', 'Bangkok', 'Dubai', 'Istanbul', 'Berlin', 'Prague', 'Vienna',
        'Madrid', 'Athens', 'Singapore', 'Sydney', 'San Francisco', 'Los Angeles', 'Chicago',
        'Las Vegas', 'Orlando', 'Honolulu', 'Toronto', 'Mexico City', 'Rio de Janeiro',
        'São Paulo', 'Buenos Aires', 'Lima', 'Cape Town', 'Marrakesh', 'Cairo', 'Mumbai', 'Seoul',
        'Kyoto', 'Copenhagen', 'Reykjavík', 'Málaga'
    ] AS names
),
draws AS (
    SELECT
        user_id,
        md5(user_id) AS noise,
        ('0x' || noise[1:4])::INTEGER / 65536 AS presence,
        ('0x' || noise[5:8])::INTEGER / 65536 AS amount,
        ('0x' || noise[9:12])::INTEGER / 65536 AS favourite,
        ('0x' || noise[13:16])::INTEGER / 65536 AS taste,
        ('0x' || noise[17:20])::INTEGER / 65536 AS decay
    FROM main_marketing.mart_user_segments
),
ranked AS (
    SELECT *, unnest(range(1, 2 + floor(10 * amount)::BIGINT)) AS rank
    FROM draws
    WHERE presence >= 0.03
),
placed AS (  -- 41 is prime, so any stride of 1 to 40 reaches ten different cities
    SELECT
        user_id,
        rank,
        (floor(41 * favourite * favourite)::BIGINT
            + (rank - 1) * (1 + floor(40 * taste)::BIGINT)) % 41 AS place,
        round(pow(0.70 + 0.28 * decay, rank - 1), 4) AS score
    FROM ranked
)
SELECT
    user_id,
    names[place + 1] AS recommended_destination,
    score AS recommendation_score,
    3 + floor(25 * (41 - place) * score)::BIGINT AS supporting_users,
    rank,
    $built_at::TIMESTAMPTZ AS generated_at
FROM placed, cities
ORDER BY user_id, rank;
