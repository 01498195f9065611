//! The memory that the process has to itself: not the mapped weights, which processes share.

use std::fs;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

const INTERVAL: Duration = Duration::from_millis(1);

/// Runs `work` and watches the process's private memory meanwhile: its peak in bytes, where the system says.
pub(crate) fn peak_private<T>(work: impl FnOnce() -> T) -> (T, Option<u64>) {
    thread::scope(|scope| {
        let (done, stop) = mpsc::channel::<()>();
        let watcher = scope.spawn(move || {
            let mut peak = private();
            while stop.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                peak = peak.max(private());
            }
            peak
        });
        let result = work();
        drop(done);
        (result, watcher.join().expect("reading a file does not panic"))
    })
}

/// Resident bytes that are no file's.
fn private() -> Option<u64> {
    parse(&fs::read_to_string("/proc/self/status").ok()?)
}

fn parse(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_memory_is_what_no_file_holds() {
        let status = "VmRSS:\t    9000 kB\nRssAnon:\t    1234 kB\nRssFile:\t    7766 kB\n";
        assert_eq!(parse(status), Some(1234 * 1024));
        assert_eq!(parse("VmRSS:\t    9000 kB\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_written_shows_in_the_peak() {
        const SIZE: usize = 64 << 20;
        let before = private().unwrap();
        let (last, peak) = peak_private(|| {
            let bytes = vec![1u8; SIZE];
            thread::sleep(20 * INTERVAL);
            bytes[SIZE - 1]
        });
        assert_eq!(last, 1);
        assert!(peak.unwrap() >= before + SIZE as u64 / 2);
    }
}
