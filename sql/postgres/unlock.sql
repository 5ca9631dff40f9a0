-- Give back all that lock.sql took, also when it got only some of it.
SELECT pg_advisory_unlock_all()::text AS done
