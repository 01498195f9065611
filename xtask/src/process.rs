//! What Linux tells of processes, under `/proc`.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// The unit of times in `/proc`, which Linux fixes for programs, whatever it counts in itself.
const TICK: Duration = Duration::from_millis(10);

/// Memory of a process that is not mapped from files, where the system tells it.
pub(crate) fn private_bytes(id: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// Counts the processor time of a process from a moment on.
pub(crate) struct CpuClock {
    id: u32,
    start: Duration,
}

impl CpuClock {
    /// # Errors
    /// Where the system doesn't tell such times.
    pub(crate) fn start(id: u32) -> Result<Self> {
        Ok(Self { id, start: cpu_time(id)? })
    }

    /// # Errors
    /// If the process is gone.
    pub(crate) fn elapsed(&self) -> Result<Duration> {
        Ok(cpu_time(self.id)?.saturating_sub(self.start))
    }
}

/// Processor time of a process so far, in its own code and in the system for it, to a hundredth of a second.
fn cpu_time(id: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
    ticks(&stat).map(|ticks| TICK * ticks).with_context(|| format!("no times in {stat:?}"))
}

/// `utime` and `stime`, the 14th and 15th fields; the second is a name in brackets, which may hold anything.
fn ticks(stat: &str) -> Option<u32> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(11);
    let mut next = || fields.next()?.parse::<u32>().ok();
    next()?.checked_add(next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_come_after_a_name_of_any_kind() {
        let rest = "S 1 2 3 0 -1 4194560 100 0 0 0 250 42 0 0 20 0";
        assert_eq!(ticks(&format!("77 (nv) {rest}")), Some(292));
        assert_eq!(ticks(&format!("77 (a) b (c) {rest}")), Some(292));
        assert_eq!(ticks("77 (nv) S 1 2"), None);
    }
}
