-- Deletes the rows of a partition that is truncated alone: the stream tells a TRUNCATE of the whole table only. The argument is that table.
CREATE OR REPLACE FUNCTION tidelock.delete_truncated() RETURNS trigger LANGUAGE plpgsql AS $tidelock$
BEGIN
    IF pg_catalog.current_setting('tidelock.truncating', true) IS DISTINCT FROM TG_ARGV[0] THEN
        EXECUTE pg_catalog.format('DELETE FROM %I.%I', TG_TABLE_SCHEMA, TG_TABLE_NAME);
    END IF;
    RETURN NULL;
END
$tidelock$
