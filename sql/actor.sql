-- Tells the stream who is about to change a mirror table: at most one message for each actor in a transaction.
-- An application names the person it acts for by: SET LOCAL tidelock.actor = 'name'.
CREATE OR REPLACE FUNCTION tidelock.tell_actor() RETURNS trigger LANGUAGE plpgsql AS $tidelock$
DECLARE
    actor text;
BEGIN
    IF pg_catalog.current_setting('tidelock.replay', true) = 'on' THEN
        RETURN NULL;
    END IF;
    actor := pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
        'user', NULLIF(pg_catalog.current_setting('tidelock.actor', true), ''),
        'role', CASE pg_catalog.current_setting('role')
                    WHEN 'none' THEN session_user::pg_catalog.text
                    ELSE pg_catalog.current_setting('role')
                END,
        'application', NULLIF(pg_catalog.current_setting('application_name'), '')
    ))::pg_catalog.text;
    IF actor IS DISTINCT FROM pg_catalog.current_setting('tidelock.actor_told', true) THEN
        PERFORM pg_catalog.pg_logical_emit_message(true, 'tidelock.actor', actor);
        PERFORM pg_catalog.set_config('tidelock.actor_told', actor, true);
    END IF;
    RETURN NULL;
END
$tidelock$
