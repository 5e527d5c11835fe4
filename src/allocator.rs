//! glibc's allocator, told to share memory among threads.

/// Lets all threads share four arenas. A row is decoded by one thread, folded by the next and freed there, so with an arena for each
/// thread what is free in one is of no use to the others; with fewer than four they wait for one another. To be called before any
/// thread starts; with another C library it does nothing.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "sets a number of the C library and touches no memory")]
pub fn share_arenas() {
    unsafe extern "C" {
        safe fn mallopt(parameter: std::ffi::c_int, value: std::ffi::c_int) -> std::ffi::c_int;
    }
    const M_ARENA_MAX: std::ffi::c_int = -8;
    mallopt(M_ARENA_MAX, 4);
}

/// Nothing to do here.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn share_arenas() {}
