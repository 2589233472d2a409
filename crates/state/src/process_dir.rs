//! The directory of one process, `<root>/<container>/<process>/`: its files and who may write them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::fcntl::OFlag;

use crate::announce::{Announcer, write_line};
use crate::directory::is_damage;
use crate::status::parse_status_file;
use crate::{
    Directory, Evidence, ExitRecord, ExitStatus, ProcessRecord, RecordError, UnknownReason,
};

/// The record; see [`ProcessRecord`]. Written by the supervisor.
pub const PROCESS_JSON: &str = "process.json";
/// The pid in decimal, written by the runtime.
pub const PID: &str = "pid";
/// FIFO: the shim's announcements, then hang-up when it is gone.
pub const EXIT: &str = "exit";
/// FIFO: messages to the shim.
pub const CONTROL: &str = "control";
/// FIFO: the standard input, where Holdfast makes one.
pub const STDIN: &str = "stdin";
/// The seed's number, decimal.
pub const EXIT_STATUS: &str = "exitStatus";
/// The end in full; written just before [`EXIT_STATUS`].
pub const EXIT_JSON: &str = "exit.json";
/// What the process wrote, in the format of [`crate::cri`].
pub const OUTPUT_LOG: &str = "output.log";
/// The same in the format of [`crate::json_file`].
pub const OUTPUT_JSON: &str = "output.json";
/// The same as it is.
pub const OUTPUT_RAW: &str = "output.raw";
/// The shim's own messages.
pub const SHIM_LOG: &str = "shim-log.json";
/// The runtime's own messages.
pub const RUNTIME_LOG: &str = "log.json";
/// Empty, and there once what is left of a start that came to nothing is being ended.
pub const ABANDONED: &str = "abandoned";
/// Empty, and there from the moment in which a shim is about to run the runtime.
pub const BEGUN: &str = "begun";

/// No record comes near this; a larger file is not one.
const RECORD_LIMIT: u64 = 16 * 1024 * 1024;
/// A status, a pid.
const SMALL_LIMIT: u64 = 4096;
/// How many bytes of a log are searched for an error. The log may be larger: a runtime with `--debug` writes
/// much.
const LOG_PART: u64 = 1024 * 1024;

/// An open process directory.
#[derive(Debug)]
pub struct ProcessDir(Directory);

/// A record that could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be read.
    #[error("{PROCESS_JSON}: {0}")]
    Io(#[from] io::Error),
    /// The file makes no sense.
    #[error("{PROCESS_JSON}: {0}")]
    Record(#[from] RecordError),
}

impl LoadError {
    /// Whether there is no sound record. One of a newer build is sound, and so may one be that
    /// can't be read now.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Io(error) => is_damage(error),
            Self::Record(error) => !matches!(error, RecordError::NewerSchema { .. }),
        }
    }
}

impl ProcessDir {
    /// Takes an open directory for one of a process.
    #[must_use]
    pub fn new(directory: Directory) -> Self {
        Self(directory)
    }

    /// Opens a directory by path, as the shim does.
    pub fn open(path: &Path) -> io::Result<Self> {
        Directory::open(path).map(Self)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The directory itself.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.0
    }

    /// The directory itself, for keeps.
    #[must_use]
    pub fn into_directory(self) -> Directory {
        self.0
    }

    /// Loads the record.
    pub fn load(&self) -> Result<ProcessRecord, LoadError> {
        Ok(ProcessRecord::from_json(&self.0.read(PROCESS_JSON, RECORD_LIMIT)?)?)
    }

    /// Writes the record, atomically.
    pub fn save(&self, record: &ProcessRecord) -> io::Result<()> {
        self.0.write_atomic(PROCESS_JSON, &record.to_json())
    }

    /// Makes the two FIFOs; those that are there already are kept.
    pub fn make_fifos(&self) -> io::Result<()> {
        self.0.make_fifo(EXIT)?;
        self.0.make_fifo(CONTROL)
    }

    /// Makes the FIFO for the standard input and gives it to this owner. Only root can; another user lets
    /// everyone open it, and nobody else may search the state root.
    pub fn make_stdin(&self, uid: u32, gid: u32) -> io::Result<()> {
        self.0.make_fifo(STDIN)?;
        match self.0.give(STDIN, uid, gid) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                self.0.open_to_all(STDIN)
            }
            given => given,
        }
    }

    /// The reading end of the exit FIFO. It never blocks; an end of file means that no shim holds
    /// the other end.
    pub fn exit_reader(&self) -> io::Result<File> {
        self.0.open_fifo(EXIT, OFlag::O_RDONLY)
    }

    /// The writing end of the exit FIFO, for the shim that is about to be started. Fails with
    /// `ENXIO` if nobody reads.
    pub fn exit_writer(&self) -> io::Result<File> {
        self.0.open_fifo(EXIT, OFlag::O_WRONLY)
    }

    /// The control FIFO as the shim holds it: open for both, so that it never ends.
    pub fn control_reader(&self) -> io::Result<File> {
        self.0.open_fifo(CONTROL, OFlag::O_RDWR).map_err(|error| named(CONTROL, error))
    }

    /// The control FIFO for sending. Fails with `ENXIO` if there is no shim.
    pub fn control_writer(&self) -> io::Result<File> {
        self.0.open_fifo(CONTROL, OFlag::O_WRONLY)
    }

    /// The pid that the runtime wrote; `None` as long as there is none. Anything but a positive
    /// number is an error (the seed's `errInvalidPidInt`).
    pub fn pid(&self) -> io::Result<Option<i32>> {
        let content = match self.0.read(PID, SMALL_LIMIT) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let text = std::str::from_utf8(content.trim_ascii()).unwrap_or_default();
        match text.parse::<i32>() {
            Ok(pid) if pid > 0 => Ok(Some(pid)),
            _ if text.is_empty() => Ok(None),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{PID}: process pid is invalid: {text:?}"),
            )),
        }
    }

    /// How the process ended, if that is on disk. `exit.json` says it in full; without it (the
    /// seed wrote none, and one that is damaged says nothing) `exitStatus` alone counts. Two that
    /// contradict each other leave the status unknown: one of them is wrong, nobody knows which.
    pub fn exit(&self) -> io::Result<Option<ExitRecord>> {
        let full = self.read_sound(EXIT_JSON)?;
        let full = full.and_then(|content| serde_json::from_slice::<ExitRecord>(&content).ok());
        let number = self.read_sound(EXIT_STATUS)?;
        let number = number.and_then(|content| parse_status_file(&content));
        let unreadable = ExitStatus::Unknown(UnknownReason::UnreadableRecord);
        Ok(match (full, number) {
            (Some(full), Some(number))
                if number != unreadable && number.as_number() != full.status.as_number() =>
            {
                Some(ExitRecord { status: unreadable, evidence: Evidence::None, ..full })
            }
            (Some(full), _) => Some(full),
            (None, number) => number.map(|status| ExitRecord::now(status, Evidence::StatusFile)),
        })
    }

    /// `None` if it is not there, or is no file of ours.
    fn read_sound(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match self.0.read(name, SMALL_LIMIT) {
            Err(error) if is_damage(&error) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Records how the process ended. The first record stands: if one is there, it is returned and
    /// only what a crash left out of it is made up for.
    pub fn record_exit(&self, record: &ExitRecord) -> io::Result<ExitRecord> {
        let json = serde_json::to_vec(record)?;
        let standing = match self.0.write_once(EXIT_JSON, &json) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.exit()?.unwrap_or_else(|| record.clone())
            }
            other => other.map(|()| record.clone())?,
        };
        let number = standing.status.as_number().to_string();
        match self.0.write_once(EXIT_STATUS, number.as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // The seed wrote in place, and a crash may have left its file empty.
                if parse_status_file(&self.0.read(EXIT_STATUS, SMALL_LIMIT)?).is_none() {
                    self.0.write_atomic(EXIT_STATUS, number.as_bytes())?;
                }
            }
            other => other?,
        }
        self.0.sync()?;
        Ok(standing)
    }

    /// Writes down that the start came to nothing. What ends now has never been a container's process.
    pub fn abandon(&self) -> io::Result<()> {
        self.0.append(ABANDONED).map(drop)
    }

    /// Whether that was written down. It is not synced: no process survives what would lose it.
    pub fn is_abandoned(&self) -> io::Result<bool> {
        self.0.contains(ABANDONED)
    }

    /// Writes down which shim has the process: before the runtime is run, so that the file says that a start has
    /// begun, and at an adoption. On a full disk the file may lack the shim.
    ///
    /// # Errors
    ///
    /// If the file cannot be opened.
    pub fn note_shim(&self, shim: &Announcer) -> io::Result<()> {
        let file = self.0.append(BEGUN)?;
        // A supervisor needs it only if the one before had heard of the shim, and died.
        let _ = write_line(&file, format_args!("{shim}\n"));
        Ok(())
    }

    /// Returns the shim that was written down last. Earlier builds wrote none.
    ///
    /// # Errors
    ///
    /// If the file can't be read.
    pub fn last_shim(&self) -> io::Result<Option<Announcer>> {
        let text = self.0.read(BEGUN, SMALL_LIMIT)?;
        let text = String::from_utf8_lossy(&text);
        // What follows the last line feed was not finished.
        Ok(text.rsplit('\n').skip(1).find_map(Announcer::parse))
    }

    /// Whether that was written down. Without it, nothing was run by a shim that writes it down
    /// ([`marks_start`](crate::Policies::marks_start)).
    ///
    /// # Errors
    ///
    /// If the directory can't be read.
    pub fn has_begun(&self) -> io::Result<bool> {
        self.0.contains(BEGUN)
    }

    /// The error that explains a failed start: the shim's own first, then the runtime's.
    #[must_use]
    pub fn start_error(&self) -> Option<StartError> {
        let first_error = |name| crate::log::first_error(&self.0.read_front(name, LOG_PART).ok()?);
        first_error(SHIM_LOG)
            .map(StartError::Shim)
            .or_else(|| first_error(RUNTIME_LOG).map(StartError::Runtime))
    }

    /// The end of what the process, or a runtime that failed before it made one, wrote to its
    /// standard error at this time (RFC 3339) or later.
    #[must_use]
    pub fn stderr_tail(&self, since: &str) -> String {
        let log = self.0.read_back(OUTPUT_LOG, LOG_PART).unwrap_or_default();
        let mut text = Vec::new();
        for entry in log.split(|&b| b == b'\n').filter_map(crate::cri::decode) {
            if entry.stream == crate::cri::Stream::Stderr && entry.time >= since {
                text.extend_from_slice(entry.content);
                text.push(b'\n');
            }
        }
        let start = text.len().saturating_sub(STDERR_TAIL);
        String::from_utf8_lossy(&text[start..]).trim().to_owned()
    }
}

/// Says of which file an error is, for a message that has to stand by itself.
fn named(name: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{name}: {error}"))
}

/// How much of a standard error goes into an error message, in bytes.
const STDERR_TAIL: usize = 2048;

/// What the logs say of a failed start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartError {
    /// The shim's own error.
    Shim(String),
    /// The runtime's own error.
    Runtime(String),
}

impl AsFd for ProcessDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::announce::StdioFds;
    use std::io::Read;
    use std::io::Write;

    fn scratch() -> (tempfile::TempDir, ProcessDir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = ProcessDir::open(temp.path()).unwrap();
        (temp, dir)
    }

    #[test]
    fn the_last_shim_that_was_written_down_is_found_and_no_half_of_one() {
        let (_temp, dir) = scratch();
        assert!(dir.last_shim().is_err() && !dir.has_begun().unwrap());
        // As an earlier build does.
        dir.directory().append(BEGUN).unwrap();
        assert_eq!(dir.last_shim().unwrap(), None);
        let shim = |pid| Announcer {
            pid,
            stdio: StdioFds { stdout: Some("5:14.77".parse().unwrap()), ..StdioFds::default() },
        };
        for pid in [7, 8] {
            dir.note_shim(&shim(pid)).unwrap();
            assert_eq!(dir.last_shim().unwrap(), Some(shim(pid)));
        }
        dir.directory().append(BEGUN).unwrap().write_all(b"shim=9 stdout=5").unwrap();
        assert_eq!(dir.last_shim().unwrap(), Some(shim(8)));
    }

    #[test]
    fn the_first_record_of_an_exit_stands() {
        let (_temp, dir) = scratch();
        assert_eq!(dir.exit().unwrap(), None);
        let first = ExitRecord::now(ExitStatus::Signal(9), Evidence::Shim);
        let second =
            ExitRecord::now(ExitStatus::Unknown(UnknownReason::ExitedUnwatched), Evidence::None);
        assert_eq!(dir.record_exit(&first).unwrap(), first);
        assert_eq!(dir.record_exit(&second).unwrap(), first);
        assert_eq!(dir.exit().unwrap(), Some(first));
        assert_eq!(dir.directory().read(EXIT_STATUS, 10).unwrap(), b"137");
    }

    #[test]
    fn an_empty_status_file_is_none_and_is_made_up_for() {
        let (temp, dir) = scratch();
        std::fs::write(temp.path().join(EXIT_STATUS), "").unwrap();
        assert_eq!(dir.exit().unwrap(), None);
        dir.record_exit(&ExitRecord::now(ExitStatus::Code(3), Evidence::Pidfd)).unwrap();
        assert_eq!(dir.directory().read(EXIT_STATUS, 10).unwrap(), b"3");
    }

    #[test]
    fn a_crash_between_the_two_status_files_is_made_up_for() {
        let (_temp, dir) = scratch();
        let first = ExitRecord::now(ExitStatus::Code(42), Evidence::Shim);
        dir.directory().write_once(EXIT_JSON, &serde_json::to_vec(&first).unwrap()).unwrap();
        assert_eq!(dir.exit().unwrap().as_ref(), Some(&first));
        let late = ExitRecord::now(ExitStatus::Code(1), Evidence::Pidfd);
        assert_eq!(dir.record_exit(&late).unwrap(), first);
        assert_eq!(dir.directory().read(EXIT_STATUS, 10).unwrap(), b"42");
    }

    #[test]
    fn a_status_file_of_the_seed_counts_and_an_empty_one_says_nothing() {
        let (_temp, dir) = scratch();
        dir.directory().write_atomic(EXIT_STATUS, b"").unwrap();
        assert_eq!(dir.exit().unwrap(), None);
        dir.directory().write_atomic(EXIT_STATUS, b"%!u(uint32=137)").unwrap();
        assert_eq!(dir.exit().unwrap().unwrap().status, ExitStatus::Code(137));
    }

    #[test]
    fn a_damaged_status_is_made_up_for_or_unknown_and_never_invented() {
        let (temp, dir) = scratch();
        // Unsynced: it is written a thousand times.
        let write = |name, content: &[u8]| std::fs::write(temp.path().join(name), content).unwrap();
        let first = ExitRecord::now(ExitStatus::Code(1), Evidence::Shim);
        dir.record_exit(&first).unwrap();
        let json = serde_json::to_vec(&first).unwrap();
        for number in [&b""[..], b"x", b"257"] {
            write(EXIT_STATUS, number);
            assert_eq!(dir.exit().unwrap().as_ref(), Some(&first), "{number:?}");
        }
        let unknown = ExitStatus::Unknown(UnknownReason::UnreadableRecord);
        write(EXIT_STATUS, b"0");
        assert_eq!(dir.exit().unwrap().unwrap().status, unknown);
        write(EXIT_STATUS, b"1");
        for length in 0..json.len() {
            write(EXIT_JSON, &json[..length]);
            assert_eq!(dir.exit().unwrap().unwrap().status, first.status, "of {length} bytes");
        }
        for place in 0..json.len() {
            for bit in 0..8 {
                let mut flipped = json.clone();
                flipped[place] ^= 1 << bit;
                write(EXIT_JSON, &flipped);
                let status = dir.exit().unwrap().unwrap().status;
                assert!(status == first.status || status == unknown, "{status} of {flipped:?}");
            }
        }
        dir.directory().unlink(EXIT_JSON).unwrap();
        dir.directory().create_dir(EXIT_JSON).unwrap();
        assert_eq!(dir.exit().unwrap().unwrap().status, first.status);
    }

    #[test]
    fn pids() {
        let (_temp, dir) = scratch();
        assert_eq!(dir.pid().unwrap(), None);
        for (content, pid) in [
            ("", Some(None)),
            ("17", Some(Some(17))),
            ("17\n", Some(Some(17))),
            ("-1", None),
            ("x", None),
            ("0", None),
        ] {
            dir.directory().write_atomic(PID, content.as_bytes()).unwrap();
            assert_eq!(dir.pid().ok(), pid, "{content:?}");
        }
        dir.directory().unlink(PID).unwrap();
        dir.directory().create_dir(PID).unwrap();
        assert!(dir.pid().is_err(), "it can't be read");
    }

    #[test]
    fn a_dead_shim_shows_as_end_of_file_and_never_blocks() {
        let (_temp, dir) = scratch();
        dir.make_fifos().unwrap();
        dir.make_fifos().unwrap();
        let mut reader = dir.exit_reader().unwrap();
        let mut buffer = [0; 8];
        assert_eq!(reader.read(&mut buffer).unwrap(), 0);
        let shim = dir.exit_writer().unwrap();
        assert_eq!(reader.read(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(shim);
        assert_eq!(reader.read(&mut buffer).unwrap(), 0);
        assert!(dir.control_writer().is_err());
    }

    #[test]
    fn a_record_reads_back_and_may_be_large() {
        let (temp, dir) = scratch();
        assert_eq!((dir.path(), dir.directory().path()), (temp.path(), temp.path()));
        let mut record = ProcessRecord { root: "/run/x".to_owned(), ..ProcessRecord::default() };
        // An environment of many megabytes.
        record.oci.insert("env".to_owned(), vec!["x".repeat(100_000); 30].into());
        dir.save(&record).unwrap();
        assert_eq!(dir.load().unwrap(), record);
        assert_eq!(dir.into_directory().names().unwrap(), [PROCESS_JSON]);
    }

    #[test]
    fn a_record_is_damaged_unless_it_is_newer_or_can_not_be_read_now() {
        let (temp, dir) = scratch();
        let damaged = || dir.load().unwrap_err().is_damage();
        assert!(damaged(), "there is none");
        for (content, is_damage) in [
            (&b"{"[..], true),
            (br#"{"x":{"schema":1,"bootId":"b"}}"#, true),
            (br#"{"holdfast":{"schema":2}}"#, false),
        ] {
            std::fs::write(temp.path().join(PROCESS_JSON), content).unwrap();
            assert_eq!(damaged(), is_damage, "{content:?}");
        }
        let endless = std::fs::File::create(temp.path().join(PROCESS_JSON)).unwrap();
        endless.set_len(1 << 40).unwrap();
        assert!(damaged(), "it is too large");
        assert!(!LoadError::Io(nix::errno::Errno::EMFILE.into()).is_damage());
    }

    #[test]
    fn a_standard_input_belongs_to_the_container() {
        use std::os::unix::fs::{FileTypeExt, MetadataExt};
        let (temp, dir) = scratch();
        let is_root = nix::unistd::geteuid().is_root();
        dir.make_stdin(12, 34).unwrap();
        let stdin = temp.path().join(STDIN).metadata().unwrap();
        assert!(stdin.file_type().is_fifo());
        assert_eq!((stdin.uid(), stdin.gid()) == (12, 34), is_root);
        assert_eq!(stdin.mode() & 0o777 == 0o666, !is_root);
    }

    #[test]
    fn a_control_fifo_never_ends_and_its_lack_is_told_by_name() {
        let (_temp, dir) = scratch();
        let error = dir.control_reader().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().starts_with("control: "), "{error}");
        dir.make_fifos().unwrap();
        assert!(dir.exit_writer().is_err(), "nobody reads");
        let mut shim = dir.control_reader().unwrap();
        io::Write::write_all(&mut dir.control_writer().unwrap(), b"0 0 0\n").unwrap();
        let mut buffer = [0; 8];
        assert_eq!(shim.read(&mut buffer).unwrap(), 6);
        assert_eq!(shim.read(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_status_that_can_not_be_written_down_is_an_error() {
        let (temp, dir) = scratch();
        let record = ExitRecord::now(ExitStatus::Code(3), Evidence::Shim);
        let blocked = |name| {
            let temporary = temp.path().join(format!(".{name}.{}", std::process::id()));
            std::fs::create_dir(&temporary).unwrap();
            assert!(dir.record_exit(&record).is_err(), "{name}");
            std::fs::remove_dir(&temporary).unwrap();
        };
        blocked(EXIT_JSON);
        assert_eq!(dir.exit().unwrap(), None, "half of it counts as an exit");
        blocked(EXIT_STATUS);
        assert_eq!(dir.record_exit(&record).unwrap(), record);
    }

    #[test]
    fn a_start_is_abandoned_from_when_that_is_written_down() {
        let (_temp, dir) = scratch();
        assert!(!dir.is_abandoned().unwrap());
        dir.abandon().unwrap();
        dir.abandon().unwrap();
        assert!(dir.is_abandoned().unwrap());
    }

    #[test]
    fn a_failed_start_is_explained_by_the_shim_before_the_runtime() {
        let (temp, dir) = scratch();
        assert_eq!(dir.start_error(), None);
        let write = |name: &str, text: &str| {
            // A log as a runtime with `--debug` writes it.
            let log =
                crate::log::line("debug", "x").repeat(5000) + &crate::log::line("error", text);
            std::fs::write(temp.path().join(name), log).unwrap();
        };
        write(RUNTIME_LOG, "no such file");
        assert_eq!(dir.start_error(), Some(StartError::Runtime("no such file".to_owned())));
        write(SHIM_LOG, "no runtime");
        assert_eq!(dir.start_error(), Some(StartError::Shim("no runtime".to_owned())));
    }

    #[test]
    fn the_end_of_a_standard_error_is_that_of_no_other_stream() {
        use crate::cri::{Mark, Stream, encode};
        let (temp, dir) = scratch();
        assert_eq!(dir.stderr_tail(""), "");
        let mut log = Vec::new();
        for number in 0..1000 {
            let time = crate::time::format(std::time::UNIX_EPOCH);
            encode(Stream::Stdout, &time, Mark::Plain, b"out\n", &mut log);
            let line = format!("error {number}\n");
            encode(Stream::Stderr, &time, Mark::Plain, line.as_bytes(), &mut log);
        }
        std::fs::write(temp.path().join(OUTPUT_LOG), log).unwrap();
        let tail = dir.stderr_tail("");
        assert!(tail.ends_with("error 998\nerror 999") && !tail.contains("out"), "{tail}");
        assert!((2000..=STDERR_TAIL).contains(&tail.len()), "{}", tail.len());
    }

    /// Seen before: a log of more than a megabyte was not looked at at all.
    #[test]
    fn a_start_that_fails_is_explained_however_much_was_logged() {
        let (temp, dir) = scratch();
        let much = "x".repeat(1000);
        let noise = crate::log::line("debug", &much).repeat(1500);
        let log = format!("{}{noise}", crate::log::line("error", "no such file"));
        std::fs::write(temp.path().join(RUNTIME_LOG), log).unwrap();
        assert_eq!(dir.start_error(), Some(StartError::Runtime("no such file".into())));
        let line = |text: &str| format!("2016-10-06T00:17:09.669794202Z stderr F {text}\n");
        let log = format!("{}{}", line(&much).repeat(1500), line("the reason"));
        std::fs::write(temp.path().join(OUTPUT_LOG), log).unwrap();
        assert!(dir.stderr_tail("").ends_with("the reason"), "{}", dir.stderr_tail(""));
    }
}
