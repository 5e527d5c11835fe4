-- Logs that a mirror table was truncated, which no trigger of its rows tells.
CREATE OR REPLACE FUNCTION @schema@.tidelock_log_truncate() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $tidelock$
BEGIN
    INSERT INTO @schema@._tidelock_log (id, txid, created_at, action, table_name)
    VALUES (nextval('@sequence@'), txid_current(), clock_timestamp(), TG_OP, TG_ARGV[0]);
    PERFORM pg_notify('@channel@', 'ping');
    RETURN NULL;
END
$tidelock$
