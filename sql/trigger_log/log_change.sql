-- Logs a change of a mirror table's row. Values are printed in one form, whatever the session has set. The row is locked by
-- now, and stays so until the transaction ends: so the ids of a row's changes are in the order of their commits.
-- The arguments are the table's name and its key columns.
--
-- A statement's triggers run when all its rows are changed, and what they do in turn is logged first. So once a trigger has
-- changed rows, what the row is by now is told, and not what a statement made of it before.
CREATE OR REPLACE FUNCTION @schema@.tidelock_log_change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, @hstore@, pg_temp
    SET datestyle = 'ISO, YMD' SET timezone = 'UTC' SET intervalstyle = 'postgres' SET extra_float_digits = 3
    SET bytea_output = 'hex' SET lc_monetary = @lc_monetary@
AS $tidelock$
DECLARE
    before  hstore;
    after   hstore;
    told    hstore;
    whole   hstore;
    actual  hstore;
    key     text;
    state   text := 'NEW';
    actor   text := jsonb_strip_nulls(jsonb_build_object(
        'user', NULLIF(current_setting('tidelock.actor', true), ''),
        'role', CASE current_setting('role') WHEN 'none' THEN session_user::text ELSE current_setting('role') END,
        'application', NULLIF(current_setting('application_name'), '')))::text;
BEGIN
    IF TG_OP <> 'INSERT' THEN
        before := hstore(OLD) - '{_hc_lastop,_hc_err}'::text[];
    END IF;
    IF TG_OP <> 'DELETE' THEN
        after := hstore(NEW) - '{_hc_lastop,_hc_err}'::text[];
    END IF;
    IF current_setting('tidelock.nested', true) = 'on' THEN
        SELECT string_agg(format('t.%I = %L', k.name, COALESCE(after, before) -> k.name), ' AND ')
          INTO key
          FROM unnest(TG_ARGV[1:]) AS k (name);
        EXECUTE format('SELECT hstore(t.*) FROM %I.%I AS t WHERE %s', '@schema_text@', TG_ARGV[0], key) INTO actual;
        IF (TG_OP = 'DELETE') <> (actual IS NULL) THEN
            RETURN NULL;
        END IF;
        after := actual - '{_hc_lastop,_hc_err}'::text[];
    ELSIF pg_trigger_depth() > 1 THEN
        PERFORM set_config('tidelock.nested', 'on', true);
    END IF;
    told := CASE WHEN TG_OP = 'UPDATE' THEN after - before ELSE after END;
    IF current_setting('tidelock.replay', true) = 'on' THEN
        INSERT INTO @schema@._tidelock_log (id, txid, created_at, action, table_name, old, "values", actor)
        VALUES (nextval('@sequence@'), txid_current(), clock_timestamp(), TG_OP, TG_ARGV[0], before::text, told::text, actor);
        RETURN NULL;
    END IF;
    whole := COALESCE(before, after);
    IF told = '' OR (TG_OP = 'DELETE' AND (whole -> 'sfid'::text) IS NULL) THEN
        state := 'IGNORE';
    END IF;
    INSERT INTO @schema@._trigger_log
        (id, txid, created_at, state, action, table_name, record_id, sfid, old, "values", actor)
    VALUES (
        nextval('@sequence@'), txid_current(), clock_timestamp(), state, TG_OP, TG_ARGV[0],
        CASE WHEN whole -> 'id'::text ~ '^-?[0-9]{1,18}$' THEN (whole -> 'id'::text)::bigint END,
        left(whole -> 'sfid'::text, 18), before::text, told::text, actor);
    RETURN NULL;
END
$tidelock$
