-- $1 schema, $2 table names: one row per column, in the tables' order, domains followed to their base types.
WITH RECURSIVE base (relid, attnum, typ, typmod) AS (
    SELECT a.attrelid, a.attnum, a.atttypid, a.atttypmod
      FROM pg_catalog.pg_attribute a
      JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = $1::pg_catalog.text
       AND c.relname = ANY ($2::pg_catalog.text[])
       AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
       AND a.attnum > 0
       AND NOT a.attisdropped
    UNION ALL
    SELECT b.relid, b.attnum, t.typbasetype, CASE WHEN b.typmod < 0 THEN t.typtypmod ELSE b.typmod END
      FROM base b
      JOIN pg_catalog.pg_type t ON t.oid = b.typ
     WHERE t.typtype = 'd'
)
SELECT c.relname::pg_catalog.text,
       a.attname::pg_catalog.text,
       b.typ,
       pg_catalog.format_type(b.typ, b.typmod),
       pg_catalog.format_type(b.typ, -1),
       CASE WHEN b.typ IN (1042, 1043) AND b.typmod > 4 THEN b.typmod - 4 END,
       NOT a.attnotnull,
       a.attgenerated <> '',
       a.atthasdef OR a.attidentity <> '',
       t.typcategory::pg_catalog.text,
       ARRAY(SELECT e.enumlabel::pg_catalog.text
               FROM pg_catalog.pg_enum e
              WHERE e.enumtypid = b.typ
              ORDER BY e.enumsortorder),
       a.atttypid <> b.typ
  FROM base b
  JOIN pg_catalog.pg_type t ON t.oid = b.typ AND t.typtype <> 'd'
  JOIN pg_catalog.pg_attribute a ON a.attrelid = b.relid AND a.attnum = b.attnum
  JOIN pg_catalog.pg_class c ON c.oid = b.relid
 ORDER BY c.relname, a.attnum
