-- Let one init_db work at a time, since two would make the same table and one of them fail.
DO $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('etl.init_db', 0));
END
$$
