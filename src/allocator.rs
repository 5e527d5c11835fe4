//! glibc's allocator, told to give memory back.

/// Lets all threads share two arenas, and gives each large buffer its own pages. A row is decoded by one thread, folded by the
/// next and freed there, so with an arena for each thread what is free in one is of no use to the others. To be called before any
/// thread starts; with another C library it does nothing.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "sets two numbers of the C library and touches no memory")]
pub fn share_arenas() {
    unsafe extern "C" {
        safe fn mallopt(parameter: std::ffi::c_int, value: std::ffi::c_int) -> std::ffi::c_int;
    }
    const M_ARENA_MAX: std::ffi::c_int = -8;
    const M_MMAP_THRESHOLD: std::ffi::c_int = -3;
    mallopt(M_ARENA_MAX, 2);
    mallopt(M_MMAP_THRESHOLD, 1 << 20);
}

/// Nothing to do here.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn share_arenas() {}
