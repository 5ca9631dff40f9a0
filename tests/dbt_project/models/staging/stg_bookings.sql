select
    booking_id,
    session_id,
    user_id,
    booked_at,
    destination,
    amount
from {{ ref('raw_bookings') }}
where status = 'confirmed'
