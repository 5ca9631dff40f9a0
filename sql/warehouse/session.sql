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

-- The texts of a key's columns (see etl/warehouse/keys.py), alike in Postgres: etl.key_text.
CREATE TEMP MACRO key_of_two(x, y) AS x || '|' || y;
CREATE TEMP MACRO key_of_any(x) AS CAST(x AS VARCHAR);
CREATE TEMP MACRO key_of_text(x) AS replace(replace(x, '\', '\\'), '|', '\|');
CREATE TEMP MACRO key_of_date(x) AS strftime(x, '%Y-%m-%d');
CREATE TEMP MACRO key_of_naive_moment(x) AS strftime(x, '%Y-%m-%dT%H:%M:%S.%f');
CREATE TEMP MACRO key_of_moment(x) AS strftime(make_timestamp(epoch_us(x)), '%Y-%m-%dT%H:%M:%S.%fZ');

-- By its bits, because no two systems write a float alike. A sum with 0 is never -0.
CREATE TEMP MACRO key_of_float(x) AS CASE
    WHEN isnan(x) THEN 'NaN'
    ELSE lpad(lower(to_hex(CAST(CAST(CAST(x AS DOUBLE) + 0.0::DOUBLE AS BIT) AS BIGINT))), 16, '0')
END;

-- Without trailing zeros, but with one before the point.
CREATE TEMP MACRO key_of_decimal(x) AS CASE
    WHEN x = 0 THEN '0'
    ELSE regexp_replace(
        rtrim(regexp_replace(CAST(x AS VARCHAR), '(\.[0-9]*?)0+$', '\1'), '.'), '^(-?)\.', '\10.'
    )
END;

-- In which of n shards a row is, by a hash that Postgres computes alike (etl.shard_of in
-- sql/postgres/schema.sql). One without a key is in shard 0, so that some shard rejects it.
CREATE TEMP MACRO shard_of(key, n) AS coalesce(('0x' || substr(md5(key), 1, 8))::UINTEGER % n, 0);
