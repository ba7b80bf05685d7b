//! What processes use, as Linux counts it.
#![allow(dead_code, reason = "each program uses its own part")]

use std::fs;

/// The most memory that a process ever held, its number or `self`; nothing is known of one that has ended.
pub fn memory_peak_bytes(process: impl std::fmt::Display) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Seconds that processors have worked for this process, in itself and in the system.
pub fn processor_seconds() -> f64 {
    seconds_in_stat(14)
}

/// The same for all its children that have ended.
pub fn processor_seconds_of_children() -> f64 {
    seconds_in_stat(16)
}

/// The sum of a field of `/proc/self/stat`, numbered as its manual does, and the next, which are both ticks.
fn seconds_in_stat(field: usize) -> f64 {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = fs::read_to_string("/proc/self/stat").expect("Linux has it");
    // The name, which is the second field and in parentheses, may hold spaces.
    let (_, rest) = stat.rsplit_once(')').expect("a process has a name");
    let ticks = rest.split_whitespace().skip(field - 3).take(2);
    ticks.map(|ticks| ticks.parse::<f64>().expect("a number of ticks")).sum::<f64>() / TICKS_PER_SECOND
}
