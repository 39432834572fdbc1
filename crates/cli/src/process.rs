//! What the operating system says of this process and of the memory there is.

use std::fs;

/// The most memory that the process held at once, in bytes, page cache apart; where it is told.
pub fn peak_memory() -> Option<u64> {
    kib("/proc/self/status", "VmHWM:")
}

/// Memory that the process holds now, pages of files apart, in bytes; where it is told.
pub fn own_memory() -> Option<u64> {
    kib("/proc/self/status", "RssAnon:")
}

/// Memory that the process may still take without swapping, in bytes; where it is told.
///
/// The least of what the machine has and of what the limits of the control groups above the
/// process leave.
pub fn available_memory() -> Option<u64> {
    let machine = kib("/proc/meminfo", "MemAvailable:")?;
    Some(group_limit().map_or(machine, |limit| limit.min(machine)))
}

/// A line such as `VmRSS:  1234 kB`, in bytes.
fn kib(path: &str, field: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(field))?;
    value
        .trim()
        .strip_suffix(" kB")?
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

/// The smallest `memory.max` from the process's control group (version 2) up to the root.
fn group_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut group = groups
        .lines()
        .find_map(|line| line.strip_prefix("0::"))?
        .to_owned();
    let mut least = None;
    loop {
        let path = format!("/sys/fs/cgroup{group}/memory.max");
        let limit = fs::read_to_string(path)
            .ok()
            .and_then(|text| text.trim().parse().ok());
        least = limit.into_iter().chain(least).min();
        match group.rfind('/') {
            Some(cut) if !group.is_empty() => group.truncate(cut),
            _ => return least,
        }
    }
}
