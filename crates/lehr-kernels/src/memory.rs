//! The memory that the process may use: that of the machine, or less if its control group (Docker,
//! Kubernetes, Slurm, systemd) allows less.

use std::fs;
use std::path::{Path, PathBuf};

/// Assumed memory of a machine that does not tell.
const UNKNOWN: u64 = 16 << 30;

/// Part of a control group's memory that is left for what is not a tensor: the program itself,
/// text, the files it reads. The system ends a process whose group uses more than its limit.
const GROUP_RESERVE: u64 = 16;

/// Returns the bytes that tensors may take: the memory of the machine, or less in a control group
/// with a limit.
pub(crate) fn usable_bytes() -> usize {
    let root = Path::new("/");
    let machine = machine_bytes(root);
    usize::try_from(usable_of(machine, group_limit(root))).unwrap_or(usize::MAX)
}

fn usable_of(machine: u64, group: Option<u64>) -> u64 {
    match group {
        // A group without a limit reports one that no machine has.
        Some(limit) if limit < machine => limit - limit / GROUP_RESERVE,
        _ => machine,
    }
}

#[cfg(not(target_os = "macos"))]
fn machine_bytes(root: &Path) -> u64 {
    let text = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|rest| rest.trim().split(' ').next()?.parse::<u64>().ok());
    kib.map_or(UNKNOWN, |kib| kib.saturating_mul(1024))
}

/// Asks the program rather than the C library: the answer is needed once, and this needs no
/// `unsafe` declaration of a foreign function.
#[cfg(target_os = "macos")]
fn machine_bytes(_: &Path) -> u64 {
    let output = std::process::Command::new("/usr/sbin/sysctl").args(["-n", "hw.memsize"]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(UNKNOWN)
}

/// Returns the lowest limit of the control groups of this process and of their parents, in
/// version 1 and 2 of control groups. `root` is `/`, or a folder of made files in tests.
fn group_limit(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).unwrap_or_default();
    let limits = groups.lines().filter_map(|line| {
        // As in 0::/user.slice (version 2) and 4:memory:/docker/3f (version 1).
        let [number, controllers, path] =
            line.splitn(3, ':').collect::<Vec<_>>().try_into().ok()?;
        let version = match (number, controllers) {
            ("0", "") => Version::Two,
            _ if controllers.split(',').any(|name| name == "memory") => Version::One,
            _ => return None,
        };
        lowest(root, &version.folder(&mounts, path), version.file())
    });
    limits.min()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Version {
    fn file(self) -> &'static str {
        match self {
            Self::One => "memory.limit_in_bytes",
            Self::Two => "memory.max",
        }
    }

    /// Returns the folders of a group: where its hierarchy is mounted, and its path below.
    fn folder(self, mounts: &str, group: &str) -> (PathBuf, PathBuf) {
        let default = match self {
            Self::One => "/sys/fs/cgroup/memory",
            Self::Two => "/sys/fs/cgroup",
        };
        let (mounted_root, point) =
            mounts.lines().find_map(|line| self.mount(line)).unwrap_or(("/", default));
        // A container sees its own group mounted in the place of the whole hierarchy.
        let below = Path::new(group).strip_prefix(mounted_root);
        (PathBuf::from(point), below.unwrap_or(Path::new("")).to_owned())
    }

    /// Returns the mounted group and the mount point if a line of `mountinfo` is this hierarchy:
    /// `32 31 0:29 /docker/3f /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory`.
    fn mount(self, line: &str) -> Option<(&str, &str)> {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let (kind, options) = (after.next()?, after.nth(1).unwrap_or(""));
        let is_it = match self {
            Self::One => kind == "cgroup" && options.split(',').any(|name| name == "memory"),
            Self::Two => kind == "cgroup2",
        };
        let mut fields = before.split(' ').skip(3);
        let found = (fields.next()?, fields.next()?);
        is_it.then_some(found)
    }
}

/// Returns the lowest limit in `file` of a group and its parents up to the mount point. "max", a
/// missing file and a missing folder are no limit.
fn lowest(root: &Path, (point, below): &(PathBuf, PathBuf), file: &str) -> Option<u64> {
    let limit = |group: &Path| {
        let path = point.join(group).join(file);
        let text = fs::read_to_string(root.join(path.strip_prefix("/").ok()?)).ok()?;
        text.trim().parse().ok()
    };
    below.ancestors().filter_map(limit).min()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const GIB: u64 = 1 << 30;

    /// A root folder with these files, removed at the end.
    struct Root(PathBuf);

    impl Root {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let dir =
                std::env::temp_dir().join(format!("lehr-memory-{name}-{}", std::process::id()));
            for (path, content) in files {
                let path = dir.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
            }
            Self(dir)
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const V2: &str = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      35 31 0:32 / /sys/fs/cgroup/memory rw shared:3 - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    fn limit(name: &str, files: &[(&str, &str)]) -> Option<u64> {
        group_limit(&Root::new(name, files).0)
    }

    #[test]
    fn the_lowest_limit_of_a_group_and_its_parents_counts() {
        let group = ("proc/self/cgroup", "0::/user.slice/job.scope\n");
        let found = limit(
            "v2",
            &[
                group,
                ("proc/self/mountinfo", V2),
                ("sys/fs/cgroup/memory.max", "max\n"),
                ("sys/fs/cgroup/user.slice/memory.max", "4294967296\n"),
                ("sys/fs/cgroup/user.slice/job.scope/memory.max", "8589934592\n"),
            ],
        );
        assert_eq!(found, Some(4 * GIB), "the parent allows less");
        let own = limit(
            "v2own",
            &[group, ("sys/fs/cgroup/user.slice/job.scope/memory.max", "8589934592\n")],
        );
        assert_eq!(own, Some(8 * GIB), "without a list of mounts the usual place is read");
        let none = limit("v2max", &[group, ("sys/fs/cgroup/user.slice/memory.max", "max\n")]);
        assert_eq!(none, None);
        assert_eq!(limit("none", &[]), None, "not Linux");
    }

    #[test]
    fn version_one_and_mixed_hierarchies_are_read() {
        let groups = "9:name=systemd:/\n4:cpu,memory:/slurm/job_1\n1:cpu:/\n0::/\n";
        let found = limit(
            "v1",
            &[
                ("proc/self/cgroup", groups),
                ("proc/self/mountinfo", V1),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ("sys/fs/cgroup/memory/slurm/memory.limit_in_bytes", "9223372036854771712\n"),
                ("sys/fs/cgroup/memory/slurm/job_1/memory.limit_in_bytes", "3221225472\n"),
            ],
        );
        assert_eq!(found, Some(3 * GIB));
    }

    #[test]
    fn the_group_of_a_container_is_found_where_it_is_mounted() {
        let mounts = "35 31 0:32 /docker/3f /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let limit_file = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2147483648\n");
        for (name, group) in [("in", "4:memory:/docker/3f\n"), ("out", "4:memory:/other\n")] {
            let files = [("proc/self/cgroup", group), ("proc/self/mountinfo", mounts), limit_file];
            assert_eq!(limit(name, &files), Some(2 * GIB), "{group}");
        }
    }

    #[test]
    fn a_limit_leaves_room_for_the_rest_of_the_program() {
        assert_eq!(usable_of(64 * GIB, None), 64 * GIB);
        assert_eq!(usable_of(64 * GIB, Some(9_223_372_036_854_771_712)), 64 * GIB);
        assert_eq!(usable_of(64 * GIB, Some(16 * GIB)), 15 * GIB);
        assert_eq!(usable_of(64 * GIB, Some(0)), 0);
    }

    #[cfg(not(target_os = "macos"))]
    #[test]
    fn the_memory_of_the_machine_is_read() {
        let root = Root::new("machine", &[("proc/meminfo", "MemTotal:       65536 kB\nX: 1\n")]);
        assert_eq!(machine_bytes(&root.0), 64 << 20);
        assert_eq!(machine_bytes(&Root::new("no", &[]).0), UNKNOWN);
    }
}
