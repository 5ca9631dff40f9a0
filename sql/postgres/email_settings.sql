-- Hand to statements that take no parameters, because the driver streams only such, until the end of
-- the transaction: $1 the rules, a JSON list of {template, max_age, cooldown, renamed_from}, times in
-- seconds; $2 hours between any two mails to a user; $3 the oldest build time that a mart is believed;
-- $4 shard, $5 of how many; $6 the user to look at, none for all.
SELECT
    set_config('searchflow.rules', $1, true),
    set_config('searchflow.gap_hours', $2::float8::text, true),
    set_config('searchflow.oldest', $3, true),
    set_config('searchflow.shard', $4::int::text, true),
    set_config('searchflow.shards', $5::int::text, true),
    set_config('searchflow.user', $6, true)
