select
    search_id,
    session_id,
    user_id,
    searched_at,
    destination,
    lower(platform) as platform
from {{ ref('raw_searches') }}
