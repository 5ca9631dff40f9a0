-- The owner of database and tables in the Compose stack, and no superuser. The postgres image runs
-- this once, as the superuser `postgres`, when it has made an empty database.
\getenv password POSTGRES_PASSWORD

CREATE ROLE airflow LOGIN CREATEROLE PASSWORD :'password';
ALTER DATABASE :"DBNAME" OWNER TO airflow;

-- The superuser gets in from inside its container only: over the socket, which asks for no password.
ALTER ROLE postgres PASSWORD NULL;
