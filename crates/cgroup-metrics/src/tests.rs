//! Cgroups that are made up, and those of this machine.

use std::fs;
use std::path::Path;

use holdfast_ttrpc::Message;
use holdfast_ttrpc::metrics::v1::{
    BlockIoEntry, Cpu, CpuUsage, Hugetlb, MemoryEntry, OomControl, Throttle,
};
use holdfast_ttrpc::metrics::v2::{IoEntry, MemoryEvents};
use holdfast_ttrpc::metrics::{Pids, Pressure, PressureData, Rdma, RdmaEntry, v1, v2};
use holdfast_ttrpc::types::Any;
use tempfile::TempDir;

use super::*;

const PID: i32 = 17;

/// A root directory with these files and a process that has not ended.
fn root(files: &[(&str, &str)]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let stat = ("proc/17/stat", "17 (a) b) S 1 17 17 0 -1 4194560 1 2");
    for (path, text) in [stat].iter().chain(files) {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

fn hybrid() -> TempDir {
    root(&[
        (
            "proc/self/mountinfo",
            "24 19 0:22 / /cg rw shared:4 - tmpfs tmpfs rw\n\
             25 24 0:23 / /cg/cpu,cpuacct rw shared:5 - cgroup cgroup rw,cpu,cpuacct\n\
             26 24 0:24 / /cg/unified rw - cgroup2 cgroup2 rw,nsdelegate\n\
             27 24 0:25 /pods /cg/a\\040mount rw - cgroup cgroup rw,memory\n\
             28 24 0:26 / /cg/pids rw - cgroup cgroup rw,pids\n\
             29 24 0:27 / /cg/blkio rw - cgroup cgroup rw,blkio\n\
             30 24 0:28 / /cg/rdma rw - cgroup cgroup rw,rdma\n\
             31 24 0:29 / /cg/hugetlb rw - cgroup cgroup rw,hugetlb\n",
        ),
        (
            "proc/17/cgroup",
            "12:cpu,cpuacct:/c\n11:name=systemd:/c\n10:memory:/pods/c\n9:pids:/c\n8:blkio:/c\n\
             7:rdma:/c\n6:hugetlb:/c\n5:freezer:/c\n0::/c\n",
        ),
        ("proc/partitions", "major minor  #blocks  name\n\n   8        0  268435456 sda\n"),
        ("cg/cpu,cpuacct/c/cpu.stat", "nr_periods 3\nnr_throttled 2\nthrottled_time 1000\n"),
        ("cg/cpu,cpuacct/c/cpuacct.usage", "5000\n"),
        ("cg/cpu,cpuacct/c/cpuacct.usage_percpu", "2000 3000 \n"),
        ("cg/cpu,cpuacct/c/cpuacct.stat", "user 7\nsystem 5\n"),
        (
            "cg/a mount/c/memory.stat",
            "cache 1\npgpgin 2\nhierarchical_memsw_limit 3\ntotal_rss -4\n",
        ),
        ("cg/a mount/c/memory.usage_in_bytes", "4096\n"),
        ("cg/a mount/c/memory.limit_in_bytes", "9223372036854771712\n"),
        ("cg/a mount/c/memory.kmem.tcp.failcnt", "6\n"),
        ("cg/a mount/c/memory.oom_control", "oom_kill_disable 0\nunder_oom 1\noom_kill 2\n"),
        ("cg/pids/c/pids.current", "2\n"),
        ("cg/pids/c/pids.max", "max\n"),
        ("cg/pids/c/cgroup.procs", "30\n17\n0\n"),
        ("cg/pids/c/below/cgroup.procs", "18\n"),
        ("cg/blkio/c/blkio.throttle.io_serviced", "8:0 Read 1\nTotal 1\n"),
        ("cg/blkio/c/blkio.throttle.io_serviced_recursive", "8:0 Read 9\n9:1 Total 2\nTotal 11\n"),
        ("cg/blkio/c/blkio.throttle.io_service_bytes", "8:0 512\nTotal 512\n"),
        ("cg/rdma/c/rdma.current", "mlx4_0 hca_handle=2 hca_object=20\n"),
        ("cg/rdma/c/rdma.max", "mlx4_0 hca_handle=3 hca_object=max\n"),
        ("cg/hugetlb/c/hugetlb.2MB.usage_in_bytes", "2097152\n"),
        ("cg/hugetlb/c/hugetlb.2MB.rsvd.usage_in_bytes", "7\n"),
        ("cg/hugetlb/c/hugetlb.2MB.max_usage_in_bytes", "4194304\n"),
    ])
}

fn unified() -> TempDir {
    root(&[
        (
            "proc/self/mountinfo",
            "25 24 0:23 / /cg rw - cgroup2 cgroup2 rw\n\
             26 24 0:24 / /run/net_cls rw - cgroup net_cls rw,net_cls\n",
        ),
        ("proc/17/cgroup", "1:net_cls:/vpn\n0::/a/c\n"),
        ("cg/a/c/pids.current", "2\n"),
        ("cg/a/c/pids.max", "max\n"),
        ("cg/a/c/cpu.stat", "usage_usec 7\nuser_usec 4\nsystem_usec 3\nnr_bursts 1\n"),
        (
            "cg/a/c/cpu.pressure",
            "some avg10=1.50 avg60=0.25 avg300=0.00 total=12\n\
             full avg10=0.00 avg60=0.00 avg300=0.00 total=3\n",
        ),
        ("cg/a/c/memory.stat", "anon 1\nfile 2\nthp_collapse_alloc 3\n"),
        ("cg/a/c/memory.current", "4096\n"),
        ("cg/a/c/memory.max", "max\n"),
        ("cg/a/c/memory.swap.current", "5\n"),
        ("cg/a/c/memory.events", "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n"),
        ("cg/a/c/io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n"),
        ("cg/a/c/hugetlb.2MB.current", "2097152\n"),
        ("cg/a/c/hugetlb.2MB.rsvd.current", "7\n"),
        ("cg/a/c/hugetlb.2MB.events", "max 8\n"),
        ("cg/a/c/cgroup.procs", "17\n"),
        ("cg/a/c/b/cgroup.procs", "18\n19\n"),
    ])
}

fn decoded<T: Message + Default>(any: &Any, kind: &str) -> T {
    assert_eq!(any.type_url, kind);
    T::decode(any.value.as_slice()).unwrap()
}

fn measured_v1(root: &Path) -> v1::Metrics {
    decoded(&measure(root, PID).unwrap(), "io.containerd.cgroups.v1.Metrics")
}

fn measured_v2(root: &Path) -> v2::Metrics {
    decoded(&measure(root, PID).unwrap(), "io.containerd.cgroups.v2.Metrics")
}

#[test]
fn each_controller_of_version_1_is_measured_where_its_hierarchy_is_mounted() {
    let root = hybrid();
    let metrics = measured_v1(root.path());
    assert_eq!(metrics.pids, Some(Pids { current: 2, limit: 0 }));
    let usage =
        CpuUsage { total: 5000, kernel: 50_000_000, user: 70_000_000, per_cpu: vec![2000, 3000] };
    let throttling = Throttle { periods: 3, throttled_periods: 2, throttled_time: 1000 };
    assert_eq!(metrics.cpu, Some(Cpu { usage: Some(usage), throttling: Some(throttling) }));
    let memory = metrics.memory.unwrap();
    assert_eq!((memory.cache, memory.pg_pg_in, memory.hierarchical_swap_limit), (1, 2, 3));
    assert_eq!(memory.total_rss, 0, "a negative number counts as 0");
    let limit = 9_223_372_036_854_771_712;
    assert_eq!(memory.usage, Some(MemoryEntry { limit, usage: 4096, ..MemoryEntry::default() }));
    assert_eq!(memory.swap, Some(MemoryEntry::default()));
    assert_eq!(memory.kernel_tcp, Some(MemoryEntry { failcnt: 6, ..MemoryEntry::default() }));
    let control = OomControl { oom_kill_disable: 0, under_oom: 1, oom_kill: 2 };
    assert_eq!(metrics.memory_oom_control, Some(control));
    let huge = Hugetlb { usage: 2 << 20, max: 4 << 20, failcnt: 0, pagesize: "2MB".to_owned() };
    assert_eq!(metrics.hugetlb, [huge]);
    let entry = |handles, objects| {
        vec![RdmaEntry { device: "mlx4_0".to_owned(), hca_handles: handles, hca_objects: objects }]
    };
    assert_eq!(metrics.rdma, Some(Rdma { current: entry(2, 20), limit: entry(3, u32::MAX) }));
}

#[test]
fn block_io_is_the_throttles_where_there_is_no_cfq() {
    let root = hybrid();
    let entry = |op: &str, device: &str, major, minor, value| BlockIoEntry {
        op: op.to_owned(),
        device: device.to_owned(),
        major,
        minor,
        value,
    };
    let block_io = measured_v1(root.path()).blkio.unwrap();
    let expected = [entry("Read", "/dev/sda", 8, 0, 9), entry("Total", "", 9, 1, 2)];
    assert_eq!(block_io.io_serviced_recursive, expected);
    assert_eq!(block_io.io_service_bytes_recursive, [entry("", "/dev/sda", 8, 0, 512)]);
    let cfq = root.path().join("cg/blkio/c/blkio.io_serviced_recursive");
    fs::write(cfq, "8:0 Write 4\nTotal 4\n").unwrap();
    let block_io = measured_v1(root.path()).blkio.unwrap();
    assert_eq!(block_io.io_serviced_recursive, [entry("Write", "/dev/sda", 8, 0, 4)]);
}

#[test]
fn version_2_is_measured_where_no_measured_controller_is_in_version_1() {
    let root = unified();
    let metrics = measured_v2(root.path());
    assert_eq!(metrics.pids, Some(Pids { current: 2, limit: u64::MAX }));
    let cpu = metrics.cpu.unwrap();
    assert_eq!((cpu.usage_usec, cpu.user_usec, cpu.system_usec, cpu.nr_bursts), (7, 4, 3, 1));
    let some = PressureData { avg10: 1.5, avg60: 0.25, avg300: 0.0, total: 12 };
    let full = PressureData { total: 3, ..PressureData::default() };
    assert_eq!(cpu.psi, Some(Pressure { some: Some(some), full: Some(full) }));
    let memory = metrics.memory.unwrap();
    assert_eq!((memory.anon, memory.file, memory.thp_collapse_alloc), (1, 2, 3));
    assert_eq!((memory.usage, memory.usage_limit, memory.swap_usage), (4096, u64::MAX, 5));
    let events = MemoryEvents { low: 1, high: 2, max: 3, oom: 4, oom_kill: 5, oom_group_kill: 6 };
    assert_eq!(metrics.memory_events, Some(events));
    let entry = IoEntry { major: 8, minor: 0, rbytes: 1, wbytes: 2, rios: 3, wios: 4 };
    assert_eq!(metrics.io.unwrap().usage, [entry]);
    let pagesize = "2MB".to_owned();
    let huge = v2::Hugetlb { current: 2 << 20, max: 0, pagesize, failcnt: 8 };
    assert_eq!(metrics.hugetlb, [huge]);
    assert_eq!(metrics.rdma, None);
}

#[test]
fn a_controller_without_files_is_left_out() {
    let root = hybrid();
    for controller in ["a mount", "pids", "rdma", "hugetlb", "cpu,cpuacct"] {
        fs::remove_dir_all(root.path().join("cg").join(controller)).unwrap();
    }
    let metrics = measured_v1(root.path());
    assert_eq!((metrics.memory, metrics.memory_oom_control, metrics.pids), (None, None, None));
    assert_eq!(metrics.rdma, None);
    assert_eq!(metrics.hugetlb, []);
    // Containerd's readers expect this one.
    let zero = Cpu { usage: Some(CpuUsage::default()), throttling: Some(Throttle::default()) };
    assert_eq!(metrics.cpu, Some(zero));
    assert_eq!(metrics.blkio.unwrap().io_serviced_recursive.len(), 2);

    let root = unified();
    fs::remove_dir_all(root.path().join("cg/a/c")).unwrap();
    assert_eq!(measured_v2(root.path()), v2::Metrics::default());
}

/// Version 1 shows such a process in the root cgroup.
#[test]
fn a_process_that_ends_has_no_cgroups() {
    let root = hybrid();
    let stat = root.path().join("proc/17/stat");
    fs::write(stat, "17 (a) b) Z 1 17 17 0 -1 4227340 1 2").unwrap();
    let error = measure(root.path(), PID).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    assert_eq!(error.to_string(), "process 17 has ended");
}

#[test]
fn a_cgroup_that_no_mount_shows_is_an_error() {
    let root = unified();
    for path in ["/../other", "/a/../../c"] {
        fs::write(root.path().join("proc/17/cgroup"), format!("0::{path}\n")).unwrap();
        let error = measure(root.path(), PID).unwrap_err().to_string();
        assert_eq!(error, "no cgroup of process 17 is mounted here");
    }
}

#[test]
fn a_child_that_nobody_has_waited_for_has_no_cgroups() {
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let pid = child.id().cast_signed();
    assert!(of(pid).is_ok());
    child.kill().unwrap();
    // It stays a zombie until it is waited for.
    let mut ended = String::new();
    while !ended.contains(") Z ") {
        ended = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    }
    assert_eq!(of(pid).unwrap_err().to_string(), format!("process {pid} has ended"));
    child.wait().unwrap();
}
