-- Refuses TRUNCATE of a mirror table, or of a partition alone: the argument is the partitioned table, whose own TRUNCATE may be allowed.
CREATE OR REPLACE FUNCTION tidelock.refuse_truncate() RETURNS trigger LANGUAGE plpgsql AS $tidelock$
BEGIN
    IF pg_catalog.current_setting('tidelock.replay', true) = 'on'
       OR pg_catalog.current_setting('tidelock.truncating', true) = TG_ARGV[0] THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION 'TRUNCATE of %.% is refused: its rows are kept in step with Salesforce', TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'feature_not_supported',
              HINT = 'Use DELETE, which deletes the records in Salesforce too; or let the mapping say what TRUNCATE comes to.';
END
$tidelock$
