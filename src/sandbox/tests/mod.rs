//! Tests of the sandbox through its sockets.

mod consistency;
mod events;
mod faults;
mod records;
mod support;
