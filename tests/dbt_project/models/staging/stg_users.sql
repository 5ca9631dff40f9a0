select
    user_id,
    created_at,
    upper(country) as country
from {{ ref('raw_users') }}
