-- One row per visit: what was searched in it and what was booked.
with searched as (
    select
        session_id,
        user_id,
        min(searched_at) as started_at,
        max(searched_at) as ended_at,
        mode(platform order by platform) as platform,
        count(*) as searches
    from {{ ref('stg_searches') }}
    group by session_id, user_id
),

booked as (
    select
        session_id,
        max(booked_at) as booked_at,
        count(*) as conversions,
        sum(amount) as revenue
    from {{ ref('stg_bookings') }}
    group by session_id
)

select
    searched.session_id,
    searched.user_id,
    searched.started_at,
    greatest(searched.ended_at, booked.booked_at) as ended_at,
    searched.platform,
    searched.searches,
    coalesce(booked.conversions, 0) as conversions,
    coalesce(booked.revenue, 0) as revenue
from searched
left join booked using (session_id)
