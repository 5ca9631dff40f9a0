-- Find what a run must not touch: our schemas, the tables and functions $1 (a JSON list of names) and
-- the tables' partitions where the owner is untrusted, because an owner's triggers and functions run
-- with the rights of whoever writes or calls; triggers that call what an untrusted owner made,
-- because the right TRIGGER is enough to make one; and tables that inherit from ours, because their
-- rows count as rows of the parent.
-- Trusted are superusers, the database's owner and its members, the connected role and the roles
-- whose rights it has (of a superuser: itself alone, since it has everybody's), and the members of
-- searchflow_owner.
WITH RECURSIVE tables AS (
    SELECT
        c.oid,
        c.relowner AS owner,
        n.nspname || '.' || c.relname AS name,
        NULL COLLATE "C" AS parent
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE
        n.nspname IN ('crm', 'etl')
        AND c.relkind NOT IN ('i', 'I')
        AND n.nspname || '.' || c.relname IN (SELECT jsonb_array_elements_text($1::jsonb))
    UNION ALL
    SELECT
        c.oid,
        c.relowner,
        n.nspname || '.' || c.relname,
        CASE WHEN NOT c.relispartition THEN t.name END
    FROM tables AS t
    JOIN pg_catalog.pg_inherits AS i ON i.inhparent = t.oid
    JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
),

triggers AS (
    SELECT DISTINCT
        'trigger ' || g.tgname || ' on ' || t.name AS name,
        coalesce(p.proowner, o.oprowner, y.typowner) AS owner
    FROM tables AS t
    JOIN pg_catalog.pg_trigger AS g ON g.tgrelid = t.oid
    -- Its function, and what its WHEN calls.
    JOIN pg_catalog.pg_depend AS d ON d.classid = 'pg_trigger'::regclass AND d.objid = g.oid
    LEFT JOIN pg_catalog.pg_proc AS p
        ON d.refclassid = 'pg_proc'::regclass AND d.refobjid = p.oid
    LEFT JOIN pg_catalog.pg_operator AS o
        ON d.refclassid = 'pg_operator'::regclass AND d.refobjid = o.oid
    LEFT JOIN pg_catalog.pg_type AS y
        ON d.refclassid = 'pg_type'::regclass AND d.refobjid = y.oid
    WHERE NOT g.tgisinternal AND g.tgenabled <> 'D'
),

found AS (
    SELECT 'schema ' || n.nspname AS name, n.nspowner AS owner, NULL AS parent
    FROM pg_catalog.pg_namespace AS n
    WHERE n.nspname IN ('crm', 'etl')
    UNION ALL
    SELECT t.name, t.owner, t.parent FROM tables AS t
    UNION ALL
    SELECT g.name, g.owner, NULL FROM triggers AS g
    UNION ALL
    SELECT 'function ' || n.nspname || '.' || p.proname, p.proowner, NULL
    FROM pg_catalog.pg_proc AS p
    JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
    WHERE
        n.nspname IN ('crm', 'etl')
        AND n.nspname || '.' || p.proname IN (SELECT jsonb_array_elements_text($1::jsonb))
)

SELECT f.name, r.rolname::text AS owner, f.parent
FROM found AS f
JOIN pg_catalog.pg_roles AS r ON r.oid = f.owner
JOIN pg_catalog.pg_roles AS me ON me.rolname = current_user
JOIN pg_catalog.pg_database AS d ON d.datname = current_database()
LEFT JOIN pg_catalog.pg_roles AS o ON o.rolname = 'searchflow_owner'
WHERE
    f.parent IS NOT NULL
    OR NOT (
        r.rolsuper
        OR r.rolname = 'pg_database_owner'
        OR pg_has_role(r.oid, d.datdba, 'MEMBER')
        OR CASE WHEN me.rolsuper THEN r.oid = me.oid ELSE pg_has_role(r.oid, 'USAGE') END
        OR coalesce(pg_has_role(r.oid, o.oid, 'MEMBER'), false)
    )
ORDER BY f.parent IS NOT NULL, f.name NOT LIKE 'schema %', f.name
