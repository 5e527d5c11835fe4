-- Puts a message of Tidelock's between the changes, as pg_logical_emit_message does in the server's log.
CREATE OR REPLACE FUNCTION @schema@.tidelock_log_message(prefix text, content text) RETURNS void LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
AS $tidelock$
BEGIN
    INSERT INTO @schema@._tidelock_log (id, txid, created_at, action, table_name, "values")
    VALUES (nextval('@sequence@'), txid_current(), clock_timestamp(), 'MESSAGE', prefix, content);
    PERFORM pg_notify('@channel@', 'ping');
END
$tidelock$
