//! The allocator of the whole program, RocksDB's C++ included.
//!
//! A row is decoded by one thread, folded by the next, and freed there, while RocksDB fills and drops buffers of megabytes. jemalloc
//! does that with less work than glibc's allocator, and gives what is free back to the system. Its settings are in
//! `.cargo/config.toml`, which counts where cargo runs in this directory or below it.

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;
