//! The stand-in Salesforce org, part of the product: users test their mappings against it, and so do our own tests.
//!
//! One port serves REST and the Pub/Sub API, plain and with TLS. Behind it is an org in memory: objects with typed
//! fields, transactions, automation, an event log with real Avro schemas and bitmaps, and faults that can be switched on.
//! It shares nothing with the product's own Salesforce client but the generated protocol types, or it would share its
//! mistakes; so it encodes Avro and checks ids by code of its own.
//!
//! Invariants: all of a request's writes are one transaction; what is told follows from what was committed, in commit
//! order; stored values are always in their one normal form; the same seed and the same requests give the same org.

mod admin;
mod auth;
mod avro;
mod bitmap;
mod cert;
mod config;
mod csv;
mod diff;
mod events;
mod faults;
mod id;
mod normalise;
mod number;
mod org;
mod orgfile;
mod pubsub;
mod refusal;
mod rest;
mod rng;
mod rules;
mod schema;
mod seed;
mod server;
mod soql;
mod standard;
mod state;
mod table;
mod tell;
#[cfg(test)]
mod tests;
mod time;
mod url;
mod value;
mod write;

pub use config::*;
pub use faults::Faults;
pub use id::random_org_id;
pub use server::{Running, Sandbox};
