-- What every connection to the warehouse sets for itself.
SET TimeZone = 'UTC';
SET enable_progress_bar = false;

-- How a mart's values become the contract's types, whatever width dbt gave them. NULL where a
-- value does not fit: the contract then rejects the row and shows the value as it was.

-- A count: a fraction, NaN or more than a bigint holds does not fit.
CREATE TEMP MACRO as_count(x) AS CASE WHEN TRY_CAST(x AS BIGINT) = x THEN TRY_CAST(x AS BIGINT) END;

-- Money, rounded to cents as DuckDB casts.
CREATE TEMP MACRO as_money(x) AS TRY_CAST(x AS DECIMAL(14, 2));

CREATE TEMP MACRO as_number(x) AS TRY_CAST(x AS DOUBLE);

CREATE TEMP MACRO as_text(x) AS CAST(x AS VARCHAR);

-- A moment, in the years that every system downstream can hold; without a zone it is UTC.
CREATE TEMP MACRO as_moment(x) AS CASE
    WHEN CAST(x AS TIMESTAMPTZ) >= '0001-01-01 00:00:00+00'::TIMESTAMPTZ
        AND CAST(x AS TIMESTAMPTZ) < '10000-01-01 00:00:00+00'::TIMESTAMPTZ
        THEN CAST(x AS TIMESTAMPTZ)
END;

-- What did not fit, as it stood in the mart.
CREATE TEMP MACRO misfit(x, cast_x) AS CASE
    WHEN x IS NOT NULL AND cast_x IS NULL THEN CAST(x AS VARCHAR)
END;

-- Shard i of n, by a hash that Postgres computes alike (see sql/postgres/user_segments_mirror.sql).
CREATE TEMP MACRO in_shard(key, i, n) AS ('0x' || substr(md5(key), 1, 8))::UINTEGER % n = i;
