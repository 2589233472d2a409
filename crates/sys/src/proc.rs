//! Facts that only `/proc` tells.

use std::fs::{self, File};
use std::io::{self, Read};
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};

use crate::Termination;

/// The fields of `/proc/PID/stat` that Holdfast needs (proc_pid_stat(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Field 3: `Z` is a zombie.
    pub state: u8,
    /// Field 4: the parent's pid.
    pub ppid: i32,
    /// Fields 14 and 15: the processor time that it has used, in clock ticks.
    pub cpu_ticks: u64,
    /// Field 24: its memory, in pages.
    pub resident_pages: u64,
    /// Field 22: start time in clock ticks after boot, as text: it is compared. [`Stat::started`] computes.
    pub start_time: String,
    /// Field 52: the wait status; meaningful only for a zombie, and 0 without ptrace read access.
    pub exit_code: i32,
}

impl Stat {
    /// Reads the entry of `pid`. `NotFound` (or `ESRCH`) if there is no such process.
    pub fn read(pid: i32) -> io::Result<Self> {
        let bytes = read(&format!("/proc/{pid}/stat"))?;
        Self::parse(&bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Parses the line.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        let fields: Vec<&str> = fields(line)?.collect();
        let field = |number: usize| fields.get(number - 3).copied();
        Some(Self {
            state: *field(3)?.as_bytes().first()?,
            ppid: field(4)?.parse().ok()?,
            cpu_ticks: field(14)?
                .parse::<u64>()
                .ok()?
                .saturating_add(field(15)?.parse::<u64>().ok()?),
            // The kernel prints a signed number.
            resident_pages: field(24)?.parse().unwrap_or_default(),
            start_time: field(22)?.to_owned(),
            exit_code: field(52)?.parse().ok()?,
        })
    }

    /// The processor time that it has used.
    pub fn cpu_time(&self) -> io::Result<Duration> {
        let a_second = sysconf(SysconfVar::CLK_TCK)?.and_then(|it| u64::try_from(it).ok());
        let a_second = a_second.filter(|it| *it > 0).ok_or(io::ErrorKind::Unsupported)?;
        Ok(Duration::from_millis(self.cpu_ticks.saturating_mul(1000) / a_second))
    }

    /// When it started, by the system's clock as that is set now, to a clock tick.
    pub fn started(&self) -> io::Result<SystemTime> {
        let ticks: u64 = self.start_time.parse().map_err(|_| io::ErrorKind::InvalidData)?;
        let a_second = sysconf(SysconfVar::CLK_TCK)?.and_then(|it| u64::try_from(it).ok());
        let a_second = a_second.filter(|it| *it > 0).ok_or(io::ErrorKind::Unsupported)?;
        let after_boot = Duration::from_secs(ticks / a_second)
            + Duration::from_secs(ticks % a_second) / u32::try_from(a_second).unwrap_or(u32::MAX);
        let booted = SystemTime::now().checked_sub(clock_gettime(ClockId::CLOCK_BOOTTIME)?.into());
        Ok(booted.ok_or(io::ErrorKind::InvalidData)? + after_boot)
    }

    /// How a zombie ended; `None` for a process that is none.
    #[must_use]
    pub fn zombie(&self) -> Option<Termination> {
        (self.state == b'Z').then(|| Termination::from_wait_status(self.exit_code))
    }
}

/// The fields of such a line from field 3 on, as the manual counts them from 1. The process's name
/// stands in brackets and may itself hold blanks, brackets and any other byte, so everything is counted
/// from the last closing bracket.
pub(crate) fn fields(line: &[u8]) -> Option<impl Iterator<Item = &str> + Clone> {
    let name_end = line.iter().rposition(|&b| b == b')')?;
    Some(std::str::from_utf8(line.get(name_end + 2..)?).ok()?.split_ascii_whitespace())
}

/// Reads a file of `/proc`, which tells no length: mostly in one call, and one that finds the end.
pub fn read(path: &str) -> io::Result<Vec<u8>> {
    let mut content = Vec::with_capacity(4096);
    // The standard library would ask for the length of a `File`, and begin with little.
    File::open(path)?.take(u64::MAX).read_to_end(&mut content)?;
    Ok(content)
}

/// This boot's id: no process outlives a change of it.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Whether a process has been sent SIGKILL, or is already ending. Until it has ended it still has a
/// number, and may have much to give back.
#[must_use]
pub fn is_being_killed(pid: i32) -> bool {
    const SIGKILL_BIT: u64 = 1 << (libc::SIGKILL - 1);
    const PF_EXITING: u64 = 0x4;
    let status = read(&format!("/proc/{pid}/status")).unwrap_or_default();
    let pending = String::from_utf8_lossy(&status).lines().any(|line| {
        let mask = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        mask.is_some_and(|mask| mask & SIGKILL_BIT != 0)
    });
    let stat = read(&format!("/proc/{pid}/stat")).unwrap_or_default();
    // Field 9, where the state is field 3.
    let flags = fields(&stat).and_then(|mut fields| fields.nth(6)?.parse::<u64>().ok());
    pending || flags.is_some_and(|flags| flags & PF_EXITING != 0)
}

/// Every process's pid.
pub fn all() -> io::Result<Vec<i32>> {
    numbers("/proc")
}

/// The entries of a directory whose names are numbers.
pub(crate) fn numbers(path: &str) -> io::Result<Vec<i32>> {
    let names = fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.file_name()));
    names.filter_map(|name| name.map(|name| name.to_str()?.parse().ok()).transpose()).collect()
}

/// The children of the calling process, its adopted orphans included.
pub fn own_children() -> io::Result<Vec<i32>> {
    let mut all = Vec::new();
    for task in fs::read_dir("/proc/self/task")? {
        let text = fs::read_to_string(task?.path().join("children"))?;
        all.extend(text.split_ascii_whitespace().filter_map(|s| s.parse::<i32>().ok()));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_the_calling_process() {
        let stat = Stat::read(std::process::id().try_into().unwrap()).unwrap();
        assert_eq!(stat.ppid, nix::unistd::getppid().as_raw());
        assert!(stat.start_time.parse::<u64>().unwrap() > 0);
        assert_eq!(stat.zombie(), None);
        assert!(all().unwrap().contains(&std::process::id().cast_signed()));
    }

    #[test]
    fn a_start_time_by_the_clock_is_right_to_a_tick() {
        let before = SystemTime::now();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let after = SystemTime::now();
        let started = Stat::read(child.id().cast_signed()).unwrap().started().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let slack = Duration::from_millis(50);
        assert!(started + slack >= before && started <= after + slack, "{started:?}");
    }

    proptest! {
        #[test]
        fn names_of_any_bytes_do_not_shift_the_fields(name in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut line = b"4711 (".to_vec();
            line.extend(&name);
            // Fields 5 to 21 and 23 to 51 are of no interest.
            line.extend(format!(") Z 17{} 987654{} 10752\n", " 0".repeat(17), " 0".repeat(29)).bytes());
            let stat = Stat::parse(&line).unwrap();
            prop_assert_eq!(stat.ppid, 17);
            prop_assert_eq!(stat.start_time.as_str(), "987654");
            prop_assert_eq!(stat.zombie(), Some(Termination::Exited(42)));
        }

        #[test]
        fn no_input_panics(line in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = Stat::parse(&line);
        }
    }
}
