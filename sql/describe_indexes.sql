-- $1 schema, $2 table names: one row per unique index over plain columns.
SELECT c.relname::pg_catalog.text,
       x.relname::pg_catalog.text,
       ARRAY(SELECT a.attname::pg_catalog.text
               FROM pg_catalog.unnest(i.indkey::pg_catalog.int2[]) WITH ORDINALITY AS k (attnum, place)
               JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
              WHERE k.place <= i.indnkeyatts
              ORDER BY k.place),
       i.indisprimary,
       i.indisreplident,
       i.indpred IS NOT NULL,
       i.indimmediate,
       i.indisvalid
  FROM pg_catalog.pg_index i
  JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
  JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = $1::pg_catalog.text
   AND c.relname = ANY ($2::pg_catalog.text[])
   AND i.indisunique
   AND i.indexprs IS NULL
 ORDER BY c.relname, x.relname
