-- Logs a row as one that was inserted, for applications that call it as Heroku Connect's. Null where there is no such row.
-- The row itself is locked and read anew: the values that are given may be older than what the log has told since.
CREATE OR REPLACE FUNCTION @schema@.hc_capture_insert_from_row(
    source_row @hstore@.hstore, table_name varchar, excluded_cols text[] DEFAULT '{}'
) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, @hstore@, pg_temp
    SET datestyle = 'ISO, YMD' SET timezone = 'UTC' SET intervalstyle = 'postgres' SET extra_float_digits = 3
    SET bytea_output = 'hex' SET lc_monetary = @lc_monetary@
AS $tidelock$
DECLARE
    actual hstore;
    logged bigint;
    actor  text := jsonb_strip_nulls(jsonb_build_object(
        'user', NULLIF(current_setting('tidelock.actor', true), ''),
        'role', CASE current_setting('role') WHEN 'none' THEN session_user::text ELSE current_setting('role') END,
        'application', NULLIF(current_setting('application_name'), ''),
        'captured', true))::text;
BEGIN
    IF source_row -> 'id'::text IS NULL THEN
        RETURN NULL;
    END IF;
    EXECUTE format('SELECT hstore(t.*) FROM %I.%I AS t WHERE t.id = %L FOR NO KEY UPDATE',
                   '@schema_text@', table_name, source_row -> 'id'::text) INTO actual;
    IF actual IS NULL THEN
        RETURN NULL;
    END IF;
    INSERT INTO @schema@._trigger_log (id, txid, created_at, state, action, table_name, record_id, sfid, "values", actor)
    VALUES (
        nextval('@sequence@'), txid_current(), clock_timestamp(), 'NEW', 'INSERT', table_name,
        CASE WHEN actual -> 'id'::text ~ '^-?[0-9]{1,18}$' THEN (actual -> 'id'::text)::bigint END, left(actual -> 'sfid'::text, 18),
        (actual - excluded_cols - '{_hc_lastop,_hc_err}'::text[])::text, actor)
    RETURNING id INTO logged;
    RETURN logged;
END
$tidelock$
