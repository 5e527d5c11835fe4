-- What a mirror that is made from a change log alone holds of it: for each record, the row's key, up to where in the log it goes, and
-- the transaction that wrote the row last, by which an edit of anybody else is noticed.
CREATE TABLE IF NOT EXISTS tidelock.rebuilt (
    log        text NOT NULL,
    record     bigint NOT NULL,
    mapping    integer NOT NULL,
    key        text[],
    at         bigint NOT NULL,
    postgres   bigint NOT NULL,
    salesforce bigint NOT NULL,
    digest     bytea,
    written    xid,
    PRIMARY KEY (log, record)
)
