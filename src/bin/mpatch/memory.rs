//! How much memory this process can get: what the machine has free, and what the limits around the process leave.

use std::path::Path;

use mpatch::model::{Device, device_name, memory_free};
use rustix::process::{Resource, getrlimit};

use crate::error::{CommandError, ExitKind};
use crate::report::size;

/// The memory of a machine, or of the part of it that this process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// What a program can get.
    pub available_bytes: u64,
    /// What it can get on disk.
    pub swap_bytes: u64,
    /// All there is.
    pub all_bytes: u64,
}

/// What to do where a machine's memory does not suffice.
pub const WAY_OUT: &str = "end other programs, raise the limits that `ulimit -v` and the control group tell, or run on a machine with more memory";

/// Refuses what the memory of `device` cannot hold: the system would end the process, and a GPU would fail once all
/// the work before is done.
///
/// `what` takes `needed` bytes.
pub fn check_memory(what: &str, needed: u64, device: &Device) -> Result<(), CommandError> {
    let (room, place, way_out) = match device.is_cpu() {
        true => {
            let room = memory().map(|memory| memory.available_bytes.saturating_add(memory.swap_bytes));
            (room, "memory".to_owned(), WAY_OUT)
        }
        false => {
            let place = format!("the memory of {}", device_name(device));
            (memory_free(device), place, "end what else runs there, or try `--device cpu`")
        }
    };
    let Some(room) = room.filter(|room| needed > *room) else { return Ok(()) };
    let message = format!("{what} take {} in {place}, and {} are available", size(needed), size(room));
    Err(CommandError::new(ExitKind::Device, message).hint(format!(
        "`--precision bf16` takes half of what f32 does where a command has it; else {way_out}"
    )))
}

/// The memory that this process can get, where the system tells.
pub fn memory() -> Option<Memory> {
    let machine = Memory::of_machine(&std::fs::read_to_string("/proc/meminfo").ok()?)?;
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let memory = match group_of(&groups) {
        Some(group) => machine.within(Path::new("/sys/fs/cgroup"), group),
        None => machine,
    };
    let taken = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    // What `ulimit -v` and `ulimit -d` allow.
    let limits = [(Resource::As, "VmSize:"), (Resource::Data, "VmData:")];
    Some(limits.into_iter().fold(memory, |memory, (resource, taken_as)| match getrlimit(resource).current {
        Some(limit) => memory.limited(limit, bytes_of(&taken, taken_as).unwrap_or(0)),
        None => memory,
    }))
}

/// A number of bytes in the words of `/proc`, on the line that begins with `key`.
fn bytes_of(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The control group of version 2 that `/proc/self/cgroup` names.
fn group_of(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::/"))
}

impl Memory {
    /// What `/proc/meminfo` says.
    fn of_machine(text: &str) -> Option<Self> {
        let [available_bytes, swap_bytes, all_bytes] =
            ["MemAvailable:", "SwapFree:", "MemTotal:"].map(|key| bytes_of(text, key));
        Some(Self {
            available_bytes: available_bytes?,
            swap_bytes: swap_bytes.unwrap_or(0),
            all_bytes: all_bytes?,
        })
    }

    /// What of it is left where this process may have `limit` bytes, in memory and on disk together, and has `taken`.
    fn limited(self, limit: u64, taken: u64) -> Self {
        let left = limit.saturating_sub(taken);
        let available_bytes = self.available_bytes.min(left);
        let swap_bytes = self.swap_bytes.min(left - available_bytes);
        Self { available_bytes, swap_bytes, all_bytes: self.all_bytes.min(limit) }
    }

    /// What of it the control group `group` below `root`, and those that it is in, leave to their processes.
    fn within(self, root: &Path, group: &str) -> Self {
        let innermost = root.join(group);
        innermost.ancestors().take_while(|folder| folder.starts_with(root)).fold(self, Self::within_one)
    }

    fn within_one(self, folder: &Path) -> Self {
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
        // Where there is no limit, there is the word `max`.
        let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
        let left = |limit: u64, taken: &str| limit.saturating_sub(number(taken).unwrap_or(0));
        let mut least = self;
        if let Some(limit) = number("memory.max") {
            // Pages of files that nobody has used of late count as taken, and are given up before anything is refused.
            let stat = read("memory.stat").unwrap_or_default();
            let idle = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse::<u64>().ok());
            let left = left(limit.saturating_add(idle.unwrap_or(0)), "memory.current").min(limit);
            least.available_bytes = least.available_bytes.min(left);
            least.all_bytes = least.all_bytes.min(limit);
        }
        if let Some(limit) = number("memory.swap.max") {
            least.swap_bytes = least.swap_bytes.min(left(limit, "memory.swap.current"));
        }
        least
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_process_has_what_the_narrowest_limit_around_it_leaves() {
        let text = "MemTotal:  1000 kB\nMemFree:  1 kB\nMemAvailable:  800 kB\nSwapFree:  100 kB\n";
        let machine = Memory::of_machine(text).expect("as Linux writes it");
        let memory = |available: u64, swap: u64, all: u64| Memory {
            available_bytes: available * 1024,
            swap_bytes: swap * 1024,
            all_bytes: all * 1024,
        };
        assert_eq!(machine, memory(800, 100, 1000));
        assert_eq!(group_of("12:cpu:/old\n0::/pod/own\n"), Some("pod/own"));
        let root = tempfile::tempdir().expect("a folder");
        let own = root.path().join("pod/own");
        fs::create_dir_all(&own).expect("a folder");
        let write = |folder: &Path, name: &str, text: &str| fs::write(folder.join(name), text).expect(name);
        let within = |group: &str| machine.within(root.path(), group);
        assert_eq!(within("pod/own"), machine, "no limit is told");
        write(&own, "memory.max", "max\n");
        write(&own, "memory.swap.max", "0\n");
        assert_eq!(within("pod/own"), memory(800, 0, 1000));
        let pod = root.path().join("pod");
        write(&pod, "memory.max", &format!("{}\n", 500 * 1024));
        write(&pod, "memory.current", &format!("{}\n", 450 * 1024));
        write(&pod, "memory.stat", &format!("anon 7\ninactive_file {}\nactive_file 9\n", 200 * 1024));
        assert_eq!(within("pod/own"), memory(250, 0, 500), "a limit above counts as well");
        assert_eq!(within(""), machine, "a limit below does not");
        assert_eq!(machine.limited(850 * 1024, 10 * 1024), memory(800, 40, 850), "disk counts as well");
        assert_eq!(machine.limited(500 * 1024, 600 * 1024), memory(0, 0, 500));
        write(&own, "memory.max", "4096\n");
        write(&own, "memory.current", "8192\n");
        assert_eq!(within("pod/own"), memory(0, 0, 4));
    }
}
