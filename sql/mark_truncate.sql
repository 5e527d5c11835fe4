-- Marks a TRUNCATE of a partitioned table, so that its partitions' triggers know that it is not of them alone.
CREATE OR REPLACE FUNCTION tidelock.mark_truncate() RETURNS trigger LANGUAGE plpgsql AS $tidelock$
BEGIN
    PERFORM pg_catalog.set_config('tidelock.truncating', CASE TG_WHEN WHEN 'BEFORE' THEN TG_ARGV[0] ELSE '' END, true);
    RETURN NULL;
END
$tidelock$
