//! How much memory is free, as the system says it: in the machine, in the container, for the process.
//!
//! Linux says so in files, below a folder that tests bring themselves. Knows nothing of what the memory is for.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// Bytes that programs can have without others' losing theirs, as far as the system says.
pub(crate) fn available() -> Option<usize> {
    available_in(Path::new("/"))
}

/// The same of the system whose files lie below `root`.
fn available_in(root: &Path) -> Option<usize> {
    let read = |file| fs::read_to_string(root.join(file)).ok();
    let machine = parse_meminfo(&read("proc/meminfo")?)?;
    // A container may have less than its machine.
    let container = read("proc/self/cgroup").and_then(|groups| left_by_groups(root, &groups));
    // And a process less than either (`ulimit -v`).
    let process = read("proc/self/limits").zip(read("proc/self/status"));
    let process = process.and_then(|(limits, status)| parse_limits(&limits, &status));
    [container, process].into_iter().flatten().chain([machine]).min()
}

fn parse_meminfo(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The files of a control group that limit its memory.
///
/// Source: the kernel's `admin-guide/cgroup-v2.rst` and `admin-guide/cgroup-v1/memory.rst`.
struct GroupFiles {
    /// Where the groups are mounted.
    folder: &'static str,
    limit: &'static str,
    usage: &'static str,
    /// What `memory.stat` calls pages of files, those of the groups inside included.
    file_pages: [&'static str; 2],
}

const VERSION_1: GroupFiles = GroupFiles {
    folder: "sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    file_pages: ["total_active_file", "total_inactive_file"],
};

const VERSION_2: GroupFiles = GroupFiles {
    folder: "sys/fs/cgroup",
    limit: "memory.max",
    usage: "memory.current",
    file_pages: ["active_file", "inactive_file"],
};

impl GroupFiles {
    /// What the group in `folder` leaves; `None` without a limit.
    fn left(&self, folder: &Path) -> Option<usize> {
        let read = |file| fs::read_to_string(folder.join(file)).ok();
        let number = |file| read(file)?.trim().parse::<usize>().ok();
        // "max" is no limit.
        let limit = number(self.limit)?;
        let stat = read("memory.stat").unwrap_or_default();
        let file_pages = stat.lines().filter_map(|line| {
            let (name, bytes) = line.split_once(' ')?;
            if self.file_pages.contains(&name) { bytes.trim().parse::<usize>().ok() } else { None }
        });
        // Files that were read stay in memory as long as nobody needs it: they are free, as for the machine.
        let used = number(self.usage)?.saturating_sub(file_pages.sum());
        Some(limit.saturating_sub(used))
    }
}

/// What the process's groups leave, and all around them: the least of it. `groups` is `/proc/self/cgroup`.
fn left_by_groups(root: &Path, groups: &str) -> Option<usize> {
    let of_line = |line: &str| {
        // `number:controllers:path`; version 2 has all controllers in one group, and doesn't list them.
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let files = match controllers {
            "" => VERSION_2,
            _ if controllers.split(',').any(|controller| controller == "memory") => VERSION_1,
            _ => return None,
        };
        // A container sees its own group at the top: a path may lead out of that, or be the machine's, and lead nowhere.
        let is_name = |part: &Component<'_>| matches!(part, Component::Normal(_));
        let path = Path::new(path.trim_start_matches('/'));
        let path: PathBuf = path.components().take_while(is_name).collect();
        let top = root.join(files.folder);
        path.ancestors().filter_map(|group| files.left(&top.join(group))).min()
    };
    groups.lines().filter_map(of_line).min()
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
    use std::{env, process, thread};

    use super::*;

    const MEMINFO: &str =
        "MemTotal:       24683624 kB\nMemAvailable:   23759648 kB\nBuffers: 1 kB\n";
    const MACHINE: usize = 23_759_648 * 1024;
    const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units     \n\
         Max address space         1048576              unlimited            bytes     \n";

    /// What is available by `files` and the machine's.
    #[track_caller]
    fn check(files: &[(&str, &str)], expected: Option<usize>) {
        let name = format!("nv-free-memory-{}-{:?}", process::id(), thread::current().id());
        let root = env::temp_dir().join(name);
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let found = available_in(&root);
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(found, expected);
    }

    #[test]
    fn free_memory_is_the_least_that_anything_leaves() {
        let meminfo = ("proc/meminfo", MEMINFO);
        check(&[("proc/meminfo", "MemTotal: 1 kB\n")], None);
        check(&[meminfo], Some(MACHINE));

        // A container of version 2, alone in what it sees. Files that were read are no loss.
        let group = ("proc/self/cgroup", "0::/\n");
        let max = ("sys/fs/cgroup/memory.max", "8192\n");
        let current = ("sys/fs/cgroup/memory.current", "6144\n");
        let stat = "anon 1024\nfile 5000\ninactive_file 3072\nactive_file 1024\nslab 7\n";
        let stat = ("sys/fs/cgroup/memory.stat", stat);
        check(&[meminfo, group, max, current], Some(2048));
        check(&[meminfo, group, max, current, stat], Some(6144));
        check(&[meminfo, max, current, stat], Some(MACHINE));
        let over = ("sys/fs/cgroup/memory.current", "10000\n");
        check(&[meminfo, group, max, over], Some(0));
        let max = ("sys/fs/cgroup/memory.max", "max\n");
        check(&[meminfo, group, max, current, stat], Some(MACHINE));

        // A group of a machine's tree: the tightest of those around it counts.
        let group = ("proc/self/cgroup", "0::/system.slice/nv.service\n");
        let own = [
            ("sys/fs/cgroup/system.slice/nv.service/memory.max", "max\n"),
            ("sys/fs/cgroup/system.slice/nv.service/memory.current", "1000\n"),
        ];
        let around = [
            ("sys/fs/cgroup/system.slice/memory.max", "9000\n"),
            ("sys/fs/cgroup/system.slice/memory.current", "2000\n"),
        ];
        check(&[[meminfo, group], own, around].concat(), Some(7000));
        let own = [("sys/fs/cgroup/system.slice/nv.service/memory.max", "4000\n"), own[1]];
        check(&[[meminfo, group], own, around].concat(), Some(3000));
        // One outside of what the process sees has no files.
        let group = ("proc/self/cgroup", "0::/../system.slice\n");
        check(&[[meminfo, group], own, around].concat(), Some(MACHINE));
    }

    #[test]
    fn groups_of_version_1_count_too() {
        let meminfo = ("proc/meminfo", MEMINFO);
        // As Docker has it: the path is the machine's, and the container's group is mounted at the top.
        let groups = "12:cpuset:/docker/f00\n9:blkio,memory:/docker/f00\n0::/docker/f00\n";
        let groups = ("proc/self/cgroup", groups);
        let stat = "inactive_file 1\ntotal_inactive_file 400\ntotal_active_file 100\n";
        let files = [
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "4096\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1096\n"),
            ("sys/fs/cgroup/memory/memory.stat", stat),
        ];
        check(&[&[meminfo, groups], &files[..]].concat(), Some(3500));
        // What no limit looks like there.
        let limit = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        check(&[meminfo, groups, limit, files[1], files[2]], Some(MACHINE));
        let other = ("proc/self/cgroup", "12:cpuset:/docker/f00\n");
        check(&[&[meminfo, other], &files[..]].concat(), Some(MACHINE));
    }

    #[test]
    fn a_process_may_have_less_address_space_than_there_is_memory() {
        let meminfo = ("proc/meminfo", MEMINFO);
        let status = ("proc/self/status", "VmPeak:\t 9 kB\nVmSize:\t     512 kB\n");
        check(&[meminfo, ("proc/self/limits", LIMITS), status], Some(512 << 10));
        let status = ("proc/self/status", "VmSize:\t    2048 kB\n");
        check(&[meminfo, ("proc/self/limits", LIMITS), status], Some(0));
        let unlimited = LIMITS.replace("1048576  ", "unlimited");
        check(&[meminfo, ("proc/self/limits", &unlimited), status], Some(MACHINE));
    }

    #[test]
    fn this_system_says_what_is_free() {
        assert_eq!(available().is_some(), cfg!(target_os = "linux"));
    }
}
