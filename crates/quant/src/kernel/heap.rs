//! What the process asks of the C library's allocator.

/// Has memory of 256 KiB and more given back when it is freed, and no more than 1 MiB kept at the end of each
/// of four arenas.
///
/// Left alone, the GNU allocator raises both limits with every large piece that is freed, up to 32 and 64 MiB for
/// each of eight arenas per core. Buffers of megabytes that come and go then leave holes, more of them the
/// longer the process runs: a conversion of eight layers took a fifth more memory than one of four. Call it
/// before any thread starts. Other systems' allocators have no such limits, and nothing is done there.
pub fn return_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// Numbers of `malloc.h`, part of its binary interface.
        const PARAMETERS: [(i32, i32); 3] = [
            (-3, 256 << 10), // M_MMAP_THRESHOLD
            (-1, 1 << 20),   // M_TRIM_THRESHOLD
            (-8, 4),         // M_ARENA_MAX
        ];
        // SAFETY: the signature is that of `malloc.h`; it may be called at any time, takes plain numbers and
        // touches no memory of ours. A refusal changes nothing.
        unsafe extern "C" {
            safe fn mallopt(parameter: i32, value: i32) -> i32;
        }
        for (parameter, value) in PARAMETERS {
            mallopt(parameter, value);
        }
    }
}

/// Has whole pages that are free go back to the system, wherever they lie.
///
/// Pieces below the limit of [`return_freed_memory`] stay with their arena, up to 1 MiB of them at its end and
/// any number between others. Call it where memory was promised to be free: it looks through every arena.
pub fn return_free_pages() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: the signature is that of `malloc.h`; it may be called at any time, and touches nothing that is
        // in use.
        unsafe extern "C" {
            safe fn malloc_trim(pad: usize) -> i32;
        }
        malloc_trim(0);
    }
}
