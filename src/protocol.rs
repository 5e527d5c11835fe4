//! The types of the Salesforce Pub/Sub API, generated from `schemas/pubsub_api.proto`.
//!
//! The product's client and the sandbox's server both use them, and nothing else is shared between the two.

/// The package `eventbus.v1`: messages, the client, and the server trait.
#[allow(clippy::all, clippy::pedantic, missing_docs, unreachable_pub)]
pub mod eventbus {
    tonic::include_proto!("eventbus.v1");
}
