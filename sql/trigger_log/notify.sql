-- Wakes whoever reads the log. A row that was copied in from an earlier time would tell old values as new ones.
CREATE OR REPLACE FUNCTION @schema@.tlog_notify_trigger() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $tidelock$
BEGIN
    IF NEW.txid IS DISTINCT FROM txid_current() THEN
        RAISE EXCEPTION 'a row of the trigger log tells a change of its own transaction, and cannot be put in again'
            USING ERRCODE = 'feature_not_supported',
                  HINT = 'Call hc_capture_update_from_row, which logs the row as it is now.';
    END IF;
    PERFORM pg_notify('@channel@', 'ping');
    RETURN NULL;
END
$tidelock$
