-- What every connection to the warehouse sets for itself.

-- DuckDB's own functions and operators come first: a macro of the file with the name of one would
-- be called in its place (`md5`, `lower`, even `+`). Macros of a temporary schema precede both.
SET search_path = 'system.main';
SET TimeZone = 'UTC';

-- How a mart's values become the contract's types, whatever width dbt gave them. NULL where a
-- value does not fit: the contract then rejects the row and shows the value as it was.

-- Compared as bytes, whatever collation the mart's column has: keys that differ are different users.
CREATE TEMP MACRO as_text(x) AS CAST(x AS VARCHAR) COLLATE POSIX;

-- A whole number (`cast_x`), from a decimal or a float: no fraction, NaN or infinity.
CREATE TEMP MACRO as_whole(x, cast_x) AS CASE WHEN trunc(x) = x THEN cast_x END;

-- A day, in the years that every system downstream can hold.
CREATE TEMP MACRO as_day(x) AS CASE WHEN x >= '0001-01-01'::DATE AND x < '10000-01-01'::DATE THEN x END;

-- A moment, in the years that every system downstream can hold.
CREATE TEMP MACRO as_moment(x) AS CASE
    WHEN TRY_CAST(x AS TIMESTAMPTZ) >= '0001-01-01 00:00:00+00'::TIMESTAMPTZ
        AND TRY_CAST(x AS TIMESTAMPTZ) < '10000-01-01 00:00:00+00'::TIMESTAMPTZ
        THEN TRY_CAST(x AS TIMESTAMPTZ)
END;

CREATE TEMP MACRO as_naive_moment(x) AS CASE
    WHEN TRY_CAST(x AS TIMESTAMP) >= '0001-01-01'::TIMESTAMP
        AND TRY_CAST(x AS TIMESTAMP) < '10000-01-01'::TIMESTAMP
        THEN TRY_CAST(x AS TIMESTAMP)
END;

-- A moment without a zone is UTC. Its microseconds are taken over as they are: a cast would ask
-- the calendar of the session's zone for each row, ten times as slow.
CREATE TEMP MACRO as_utc_moment(x) AS make_timestamptz(epoch_us(as_naive_moment(x)));

-- What did not fit, as it stood in the mart.
CREATE TEMP MACRO uncastable(x, cast_x) AS CASE
    WHEN x IS NOT NULL AND cast_x IS NULL THEN CAST(x AS VARCHAR)
END;

-- In which of n shards a row is, by a hash that Postgres computes alike (etl.shard_of in
-- sql/postgres/schema.sql). One without a key is in shard 0, so that some shard rejects it.
CREATE TEMP MACRO shard_of(key, n) AS coalesce(('0x' || substr(md5(key), 1, 8))::UINTEGER % n, 0);
