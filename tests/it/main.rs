//! Tests against the real parts: servers, sockets, disks, the real binary.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::single_match_else, clippy::type_complexity)]
#![allow(clippy::trivially_copy_pass_by_ref, clippy::format_push_string, clippy::cmp_owned)]

mod architecture;
mod bad_input;
mod boundaries;
mod clients;
mod crash;
mod demo;
mod failover;
mod link;
mod lost;
mod pg_preflight;
mod pg_target;
mod program;
mod properties;
mod proxy;
mod publication;
mod remap;
mod replay;
mod sandbox;
mod schema;
mod setup;
mod sf_target;
mod trigger_capture;
mod truncate;
mod worked_example;
