-- Some of the user ids of a mart: what parts them evenly parts all of them about evenly.
SELECT user_id FROM users USING SAMPLE 2000 ROWS
