-- Refuses TRUNCATE of a mirror table: it would delete rows without telling which.
CREATE OR REPLACE FUNCTION tidelock.refuse_truncate() RETURNS trigger LANGUAGE plpgsql AS $tidelock$
BEGIN
    IF pg_catalog.current_setting('tidelock.replay', true) = 'on' THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION 'TRUNCATE of %.% is refused: its rows are kept in step with Salesforce', TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'feature_not_supported',
              HINT = 'Use DELETE, which deletes the records in Salesforce too; or remove the mapping first.';
END
$tidelock$
