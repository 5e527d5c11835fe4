-- Refuses an edit of columns that Salesforce owns. The trigger's condition has found that there is one; the arguments are
-- the columns to name in the message.
CREATE OR REPLACE FUNCTION tidelock.refuse_foreign_edit() RETURNS trigger LANGUAGE plpgsql AS $tidelock$
DECLARE
    before  jsonb := CASE WHEN TG_OP = 'UPDATE' THEN pg_catalog.to_jsonb(OLD) ELSE '{}' END;
    after   jsonb := pg_catalog.to_jsonb(NEW);
    touched text;
BEGIN
    SELECT pg_catalog.string_agg(a.name, ', ')
      INTO touched
      FROM pg_catalog.unnest(TG_ARGV) AS a (name)
     WHERE before ->> a.name IS DISTINCT FROM after ->> a.name;
    RAISE EXCEPTION 'Salesforce owns % of %.%', COALESCE(touched, 'a column'), TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege',
              HINT = 'Change it in Salesforce; Tidelock brings the new value here.';
END
$tidelock$
