-- What Heroku Connect's functions and its users' own triggers ask: base64 for a user's session, hex for one that replays.
CREATE FUNCTION public.get_xmlbinary() RETURNS character varying LANGUAGE plpgsql STABLE AS $tidelock$
BEGIN
    RETURN pg_catalog.current_setting('xmlbinary');
END
$tidelock$
