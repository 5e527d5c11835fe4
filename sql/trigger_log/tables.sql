-- The log of changes as Heroku Connect lays it out, its archive, and what Tidelock keeps beside it: its own writes and
-- messages (_tidelock_log), and how far the log has been read (_tidelock_stream).
CREATE TABLE IF NOT EXISTS @schema@._trigger_log (
    id           bigserial PRIMARY KEY,
    txid         bigint,
    created_at   timestamptz DEFAULT pg_catalog.now(),
    updated_at   timestamptz DEFAULT pg_catalog.now(),
    processed_at timestamptz,
    processed_tx bigint,
    state        varchar(8),
    action       varchar(7),
    table_name   varchar(128),
    record_id    bigint,
    sfid         varchar(18),
    old          text,
    "values"     text,
    sf_result    integer,
    sf_message   text,
    actor        text
);
CREATE TABLE IF NOT EXISTS @schema@._trigger_log_archive (
    id           bigint PRIMARY KEY,
    txid         bigint,
    created_at   timestamptz,
    updated_at   timestamptz,
    processed_at timestamptz,
    processed_tx bigint,
    state        varchar(8),
    action       varchar(7),
    table_name   varchar(128),
    record_id    bigint,
    sfid         varchar(18),
    old          text,
    "values"     text,
    sf_result    integer,
    sf_message   text,
    actor        text
);
-- One that Heroku Connect made has numbers of 32 bits, and does not know who acted.
ALTER TABLE @schema@._trigger_log ADD COLUMN IF NOT EXISTS actor text;
ALTER TABLE @schema@._trigger_log_archive ADD COLUMN IF NOT EXISTS actor text;
ALTER TABLE @schema@._trigger_log ALTER id TYPE bigint, ALTER record_id TYPE bigint;
ALTER TABLE @schema@._trigger_log_archive ALTER id TYPE bigint, ALTER record_id TYPE bigint;
ALTER SEQUENCE @schema@._trigger_log_id_seq AS bigint CACHE 1 NO CYCLE;
CREATE INDEX IF NOT EXISTS _trigger_log_idx_created_at ON @schema@._trigger_log (created_at);
CREATE INDEX IF NOT EXISTS _trigger_log_idx_state_id ON @schema@._trigger_log (state, id);
CREATE INDEX IF NOT EXISTS _trigger_log_idx_state_table_name ON @schema@._trigger_log (state, table_name)
    WHERE state = 'NEW' OR state = 'PENDING';
CREATE INDEX IF NOT EXISTS _trigger_log_idx_txid ON @schema@._trigger_log (txid);
CREATE INDEX IF NOT EXISTS _trigger_log_archive_idx_created_at ON @schema@._trigger_log_archive (created_at);
CREATE INDEX IF NOT EXISTS _trigger_log_archive_idx_record_id ON @schema@._trigger_log_archive (record_id);
CREATE INDEX IF NOT EXISTS _trigger_log_archive_idx_state_table_name ON @schema@._trigger_log_archive (state, table_name)
    WHERE state = 'FAILED';
CREATE TABLE IF NOT EXISTS @schema@._tidelock_log (
    id         bigint PRIMARY KEY,
    txid       bigint NOT NULL,
    created_at timestamptz NOT NULL,
    action     text NOT NULL,
    table_name text NOT NULL,
    old        text,
    "values"   text,
    actor      text
);
CREATE INDEX IF NOT EXISTS _tidelock_log_idx_txid ON @schema@._tidelock_log (txid);
CREATE TABLE IF NOT EXISTS @schema@._tidelock_stream (
    id             text PRIMARY KEY,
    tables         jsonb NOT NULL,
    done_lsn       pg_lsn NOT NULL,
    done_snapshot  text NOT NULL,
    told_lsn       pg_lsn,
    told_index     bigint,
    batch_lsn      pg_lsn,
    batch_snapshot text
)
