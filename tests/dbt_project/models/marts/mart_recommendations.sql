-- For each user the ten destinations that like-minded users search most. Two users are alike
-- by the destinations both have searched; what the user already booked is left out.
with interests as (
    select distinct user_id, destination
    from {{ ref('stg_searches') }}
),

peers as (
    select
        mine.user_id,
        theirs.user_id as peer_id,
        count(*) as in_common
    from interests as mine
    inner join interests as theirs
        on mine.destination = theirs.destination and mine.user_id <> theirs.user_id
    group by mine.user_id, theirs.user_id
),

candidates as (
    select
        peers.user_id,
        interests.destination,
        count(*) as supporting_users,
        sum(peers.in_common * peers.in_common) as weight
    from peers
    inner join interests on peers.peer_id = interests.user_id
    anti join {{ ref('stg_bookings') }} as booked
        on peers.user_id = booked.user_id and interests.destination = booked.destination
    group by peers.user_id, interests.destination
)

select
    user_id,
    destination as recommended_destination,
    weight / max(weight) over (partition by user_id) as recommendation_score,
    supporting_users,
    row_number() over (partition by user_id order by weight desc, destination) as rank,
    current_timestamp as generated_at
from candidates
qualify rank <= 10
