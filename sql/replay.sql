-- How far each change log has been replayed to this database. Written by the transactions that replay it.
CREATE TABLE IF NOT EXISTS tidelock.replay (
    link   text NOT NULL,
    log    text NOT NULL,
    ticket bigint,
    PRIMARY KEY (link, log)
)
