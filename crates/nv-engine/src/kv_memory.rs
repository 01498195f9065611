//! The bytes of the KV cache: one anonymous map, on huge pages where the system has them.
//!
//! The system hands out pages as they are first written, zeroed: a large cache costs what it holds.

use std::sync::Arc;

use bytemuck::Pod;
use memmap2::MmapMut;

use crate::error::{Error, Result};

/// Zeroed memory, allocated once.
#[derive(Debug)]
pub(crate) struct KvMemory {
    map: MmapMut,
}

impl KvMemory {
    /// # Errors
    /// [`Error::KvCacheMemory`] if the system refuses so many bytes.
    pub(crate) fn new(bytes: usize) -> Result<Self> {
        let refused = |source| Error::KvCacheMemory { bytes, source: Arc::new(source) };
        let map = MmapMut::map_anon(bytes).map_err(refused)?;
        // Pages of the usual size do as well, a little slower: a system without huge ones is no error.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self { map })
    }

    /// All of it. A map starts with a page, so it is aligned for any element.
    pub(crate) fn elements<E: Pod>(&mut self) -> &mut [E] {
        bytemuck::cast_slice_mut(&mut self.map)
    }
}

/// Bytes that programs can have without others' losing theirs, as far as the system says.
pub(crate) fn available() -> Option<usize> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let machine = parse_meminfo(&meminfo)?;
    let read = |file| std::fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok();
    // A container may have less than its machine.
    let container = read("memory.max").zip(read("memory.current"));
    let container = container.and_then(|(max, current)| parse_cgroup(&max, &current));
    // And a process less than either (`ulimit -v`).
    let of_process = |file| std::fs::read_to_string(format!("/proc/self/{file}")).ok();
    let process = of_process("limits").zip(of_process("status"));
    let process = process.and_then(|(limits, status)| parse_limits(&limits, &status));
    [container, process].into_iter().flatten().chain([machine]).min()
}

fn parse_meminfo(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn parse_cgroup(max: &str, current: &str) -> Option<usize> {
    // "max" is no limit.
    let max: usize = max.trim().parse().ok()?;
    Some(max.saturating_sub(current.trim().parse().ok()?))
}

/// Address space that a process has left.
fn parse_limits(limits: &str, status: &str) -> Option<usize> {
    let max = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    // "unlimited" is no limit.
    let max: usize = max.split_whitespace().next()?.parse().ok()?;
    let used = status.lines().find_map(|line| line.strip_prefix("VmSize:"))?;
    let used: usize = used.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(max.saturating_sub(used.checked_mul(1024)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zero_and_keeps_what_is_written() {
        let mut memory = KvMemory::new(3 << 20).unwrap();
        let elements = memory.elements::<f32>();
        assert_eq!(elements.len(), 3 << 18);
        assert!(elements.iter().all(|&element| element == 0.0));
        elements[77] = 1.5;
        assert_eq!(memory.elements::<u32>()[77], 1.5_f32.to_bits());
    }

    #[test]
    fn what_no_system_has_is_refused() {
        let error = KvMemory::new(1 << 60).unwrap_err();
        assert_eq!(
            error.to_string(),
            "kv_cache_memory: the system refuses 1152921504606846976 bytes; ask for less"
        );
    }

    #[test]
    fn free_memory_is_read_as_the_system_writes_it() {
        let meminfo = "MemTotal:       24683624 kB\nMemAvailable:   23759648 kB\nBuffers: 1 kB\n";
        assert_eq!(parse_meminfo(meminfo), Some(23_759_648 * 1024));
        assert_eq!(parse_meminfo("MemTotal: 1 kB\n"), None);
        assert_eq!(parse_cgroup("max\n", "4096\n"), None);
        assert_eq!(parse_cgroup("8192\n", "4096\n"), Some(4096));
        assert_eq!(parse_cgroup("4096\n", "8192\n"), Some(0));
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
            Max address space         1048576              unlimited            bytes     \n";
        assert_eq!(parse_limits(limits, "VmPeak:\t 9 kB\nVmSize:\t     512 kB\n"), Some(512 << 10));
        assert_eq!(parse_limits(limits, "VmSize:\t    2048 kB\n"), Some(0));
        let unlimited = limits.replace("1048576  ", "unlimited");
        assert_eq!(parse_limits(&unlimited, "VmSize:\t     512 kB\n"), None);
        assert_eq!(available().is_some(), cfg!(target_os = "linux"));
    }
}
