-- $1 schema, $2 table names: estimated rows and bytes on disk, partitions included, and whether the publication $3 lists columns.
SELECT c.relname::pg_catalog.text,
       CASE WHEN bool_and(l.reltuples >= 0) THEN sum(l.reltuples::pg_catalog.float8)::pg_catalog.int8 END,
       coalesce(sum(pg_catalog.pg_total_relation_size(l.oid)), 0)::pg_catalog.int8,
       EXISTS (SELECT
                 FROM pg_catalog.pg_publication_rel r
                 JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
                WHERE r.prrelid = c.oid
                  AND p.pubname = $3::pg_catalog.text
                  AND pg_catalog.to_jsonb(r) ->> 'prattrs' IS NOT NULL)
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_class l
    ON c.relkind = 'r' AND l.oid = c.oid
    OR c.relkind = 'p' AND l.oid IN (SELECT t.relid FROM pg_catalog.pg_partition_tree(c.oid) t WHERE t.isleaf)
 WHERE n.nspname = $1::pg_catalog.text
   AND c.relname = ANY ($2::pg_catalog.text[])
   AND c.relkind IN ('r', 'p')
 GROUP BY c.oid, c.relname
