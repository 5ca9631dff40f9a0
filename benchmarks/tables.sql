-- The tables of the others, beside the service's own crm.user_segments.
CREATE SCHEMA bench;

-- DuckDB, by hand and drt write to a table like the service's, key and defaults included.
CREATE TABLE bench.by_hand (LIKE crm.user_segments INCLUDING ALL);
CREATE TABLE bench.duckdb_diff (LIKE crm.user_segments INCLUDING ALL);
CREATE TABLE bench.duckdb_insert (LIKE crm.user_segments INCLUDING ALL);
CREATE TABLE bench.drt (LIKE crm.user_segments INCLUDING ALL);

-- The limit has the same key and the columns that come from the mart, and nothing to fill in.
CREATE TABLE bench.copied (
    user_id           text COLLATE "C" PRIMARY KEY,
    segment           text NOT NULL,
    total_searches    bigint NOT NULL,
    total_conversions bigint NOT NULL,
    lifetime_value    numeric(14, 2) NOT NULL
);
