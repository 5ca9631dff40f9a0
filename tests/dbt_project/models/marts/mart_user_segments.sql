{{ config(materialized=var('segments_materialized')) }}

-- One row per user who signed up, also one who never searched.
with clock as (
    {% if var('as_of') is none -%}
    select max(ended_at) as as_of from {{ ref('stg_sessions') }}
    {%- else -%}
    select timestamp '{{ var("as_of") }}' as as_of
    {%- endif %}
),

activity as (
    select
        user_id,
        count(*) as visits,
        count(distinct started_at::date) as active_days,
        sum(searches) as searches,
        sum(conversions) as conversions,
        sum(revenue) as revenue,
        min(started_at) as first_visit_at,
        max(ended_at) as last_visit_at,
        arg_max(conversions, ended_at) as last_visit_conversions,
        mode(platform order by platform) as platform
    from {{ ref('stg_sessions') }}
    group by user_id
),

profiles as (
    select
        users.user_id,
        users.country,
        activity.platform,
        least(100, coalesce(4 * activity.visits + 6 * activity.active_days, 0)) as engagement_score,
        coalesce(activity.revenue, 0) as revenue,
        coalesce(activity.conversions, 0) as conversions,
        coalesce(activity.searches, 0) as searches,
        least(users.created_at, activity.first_visit_at) as first_seen_at,
        coalesce(activity.last_visit_at, users.created_at) as last_seen_at,
        activity.last_visit_conversions = 0 as left_without_booking
    from {{ ref('stg_users') }} as users
    left join activity using (user_id)
)

select
    user_id,
    case
        when revenue >= {{ var('high_value_from') }} then 'high_value'
        when first_seen_at > as_of - interval 14 days then 'new_user'
        when last_seen_at < as_of - interval 30 days then 'at_risk'
        when left_without_booking and last_seen_at > as_of - interval 3 days then 'abandoned_search'
        else 'regular'
    end as segment,
    engagement_score,
    revenue as lifetime_revenue,
    conversions as lifetime_conversions,
    searches as lifetime_searches,
    first_seen_at,
    last_seen_at,
    {{ days_ago('last_seen_at') }} as days_since_last_seen,
    {{ days_ago('first_seen_at') }} as account_age_days,
    platform as primary_platform,
    country as primary_country,
    current_timestamp as segmented_at
from profiles
cross join clock
