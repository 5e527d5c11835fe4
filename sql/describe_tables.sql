-- $1 schema, $2 table names: one row per table that exists.
SELECT c.oid,
       c.relname::pg_catalog.text,
       c.relkind::pg_catalog.text,
       pg_catalog.pg_get_userbyid(c.relowner)::pg_catalog.text,
       c.relreplident::pg_catalog.text,
       c.relpersistence = 'p',
       c.relrowsecurity,
       ARRAY(SELECT t.tgname::pg_catalog.text
               FROM pg_catalog.pg_trigger t
              WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled <> 'D'
              ORDER BY 1),
       ARRAY(SELECT a.attname::pg_catalog.text
               FROM pg_catalog.pg_index i
               JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
              WHERE i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL
              ORDER BY 1),
       EXISTS (SELECT FROM pg_catalog.pg_rewrite r WHERE r.ev_class = c.oid AND r.ev_enabled <> 'D'),
       ARRAY(SELECT DISTINCT a.attname::pg_catalog.text
               FROM pg_catalog.pg_constraint f
               JOIN pg_catalog.pg_attribute a ON a.attrelid = f.confrelid AND a.attnum = ANY (f.confkey)
              WHERE f.confrelid = c.oid AND f.contype = 'f' AND f.confupdtype IN ('c', 'n', 'd')
              ORDER BY 1)
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = $1::pg_catalog.text
   AND c.relname = ANY ($2::pg_catalog.text[])
   AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
