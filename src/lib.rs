//! Tidelock keeps a Salesforce org and a PostgreSQL database in step, both ways, through one ordered change log.
//!
//! # The map
//!
//! | folder | what it is |
//! | --- | --- |
//! | [`change`] | the vocabulary: sides, values, positions, dots and vectors, entries and their encoding. Pure |
//! | [`causality`] | the rules: what an event means, what follows from an entry, what has to be written. Pure |
//! | [`mapping`] | fields, types and normalisation; the catalog; the mirror's DDL. Pure |
//! | [`config`] | `tidelock.toml` |
//! | [`flow`] | the two seams: captured events on the way in, writes on the way out |
//! | [`log`] | the change log: RocksDB, or memory for tests; one contract, one conformance suite |
//! | [`reconcile`] | comparing a side's rows with the log, and what of a difference is nobody's edit. Pure |
//! | [`ledger`] | the one owner of state: events to entries, state as a fold, tickets; verify and rebuild |
//! | [`replay`] | from the log to a side |
//! | [`postgres`], [`salesforce`] | everything that speaks to a side |
//! | [`audit`] | queries over the log |
//! | [`status`] | a running link, looked at |
//! | [`http`], [`cli`] | what people and programs touch |
//! | [`app`] | the composition root, the only one that knows every part |
//! | [`sandbox`] | the stand-in org; shares nothing with the product but the protocol's generated types |
//! | [`demo`] | a private server, a sandbox and people who edit both |
//!
//! Arrows: `change` <- `causality`, `mapping`, `log`, `flow` <- `reconcile` <- `ledger` <- `replay`, `audit` <- `app` <- `cli`; `postgres` and
//! `salesforce` know the seams and never each other. A test holds this.
//!
//! # Invariants
//!
//! 1. Nothing goes from one side to the other except through the log.
//! 2. An append is one atomic, synced batch: entries, the state they change, and the place in the source's stream.
//! 3. A source is acknowledged only what is durable, so capture is exactly once.
//! 4. State is a fold over the log's entries and nothing else.
//! 5. A write's ticket is durable before the side sees it; per record and side, at most one write is under way.
//! 6. What an edit's author had seen follows from the order of the side's own stream, not from a clock.
//! 7. Every captured change is current, was replaced by an edit whose author had seen it, or is a loser on record, parked, or
//!    a dead letter.

mod allocator;
pub mod app;
pub mod audit;
pub mod backoff;
pub mod causality;
pub mod change;
pub mod cli;
pub mod clock;
pub mod config;
pub mod demo;
pub mod error;
pub mod flow;
pub mod http;
pub mod ledger;
pub mod log;
pub mod mapping;
pub mod postgres;
pub mod protocol;
pub mod reconcile;
pub mod replay;
pub mod salesforce;
pub mod sandbox;
pub mod status;
pub mod task;
