//! The command line, as conmon's, whose rules are glib's: `--option=VALUE` or `--option VALUE`, where the value
//! may begin with dashes; short options alone, together (`-it`) or with their value (`-cID`); what is no option
//! is passed over, and so is everything behind `--`.
//!
//! By hand, and borrowed from where the kernel put it: a library would copy each argument, and every monitor
//! would keep that memory.

use std::ffi::OsStr;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use nix::unistd::{AccessFlags, access};

use crate::report::Level;

/// All of the command line.
#[derive(Debug, Clone)]
pub(crate) struct Args<'a> {
    pub(crate) adopt: bool,
    pub(crate) api_version: bool,
    pub(crate) attach_patience: i64,
    pub(crate) bundle: Option<&'a OsStr>,
    pub(crate) cid: Option<&'a OsStr>,
    pub(crate) conmon_pidfile: Option<&'a OsStr>,
    pub(crate) container_pidfile: Option<&'a OsStr>,
    pub(crate) cuuid: Option<&'a OsStr>,
    pub(crate) exec: bool,
    pub(crate) exec_attach: bool,
    pub(crate) exec_process_spec: Option<&'a OsStr>,
    pub(crate) exit_command: Option<&'a OsStr>,
    pub(crate) exit_command_args: Vec<&'a OsStr>,
    pub(crate) exit_delay: i64,
    pub(crate) exit_dir: Option<&'a OsStr>,
    pub(crate) full_attach: bool,
    pub(crate) help: bool,
    pub(crate) keep: Option<&'a OsStr>,
    pub(crate) keeper: Option<&'a OsStr>,
    pub(crate) leave_stdin_open: bool,
    pub(crate) log_allowlist_dirs: Vec<&'a OsStr>,
    pub(crate) log_global_size_max: i64,
    pub(crate) log_labels: Vec<&'a OsStr>,
    pub(crate) log_level: Option<&'a OsStr>,
    pub(crate) log_max_files: i64,
    pub(crate) log_paths: Vec<&'a OsStr>,
    pub(crate) log_rotate: bool,
    pub(crate) log_size_max: i64,
    pub(crate) log_tag: Option<&'a OsStr>,
    pub(crate) name: Option<&'a OsStr>,
    pub(crate) no_container_partial_message: bool,
    pub(crate) no_new_keyring: bool,
    pub(crate) no_pivot: bool,
    pub(crate) no_sync_log: bool,
    pub(crate) persist_dir: Option<&'a OsStr>,
    pub(crate) replace_listen_pid: bool,
    pub(crate) restore: Option<&'a OsStr>,
    pub(crate) runtime: Option<&'a OsStr>,
    pub(crate) runtime_args: Vec<&'a OsStr>,
    pub(crate) runtime_opts: Vec<&'a OsStr>,
    pub(crate) sdnotify_socket: Option<&'a OsStr>,
    pub(crate) socket_dir_path: &'a OsStr,
    pub(crate) stdin: bool,
    pub(crate) sync: bool,
    pub(crate) syslog: bool,
    pub(crate) systemd_cgroup: bool,
    pub(crate) terminal: bool,
    pub(crate) timeout: i64,
    pub(crate) version: bool,
}

impl Default for Args<'_> {
    fn default() -> Self {
        Self {
            adopt: false,
            api_version: false,
            attach_patience: 10,
            bundle: None,
            cid: None,
            conmon_pidfile: None,
            container_pidfile: None,
            cuuid: None,
            exec: false,
            exec_attach: false,
            exec_process_spec: None,
            exit_command: None,
            exit_command_args: Vec::new(),
            exit_delay: 0,
            exit_dir: None,
            full_attach: false,
            help: false,
            keep: None,
            keeper: None,
            leave_stdin_open: false,
            log_allowlist_dirs: Vec::new(),
            log_global_size_max: -1,
            log_labels: Vec::new(),
            log_level: None,
            log_max_files: 1,
            log_paths: Vec::new(),
            log_rotate: false,
            log_size_max: -1,
            log_tag: None,
            name: None,
            no_container_partial_message: false,
            no_new_keyring: false,
            no_pivot: false,
            no_sync_log: false,
            persist_dir: None,
            replace_listen_pid: false,
            restore: None,
            runtime: None,
            runtime_args: Vec::new(),
            runtime_opts: Vec::new(),
            sdnotify_socket: None,
            socket_dir_path: OsStr::new("/var/run/crio"),
            stdin: false,
            sync: false,
            syslog: false,
            systemd_cgroup: false,
            terminal: false,
            timeout: 0,
            version: false,
        }
    }
}

/// Where an option's value goes.
enum Place<'s, 'a> {
    Flag(&'s mut bool),
    Text(&'s mut Option<&'a OsStr>),
    /// One that has a default.
    Given(&'s mut &'a OsStr),
    List(&'s mut Vec<&'a OsStr>),
    Number {
        at: &'s mut i64,
        most: i64,
    },
}

/// A line of the help: name, letter, the value's name, and what it does.
type Line = (&'static str, Option<char>, &'static str, &'static str);

/// All options, in the order of the help.
const OPTIONS: [Line; 51] = [
    ("adopt", None, "", "Take over a container; the keeper passes it"),
    ("api-version", None, "", "Use the key \"data\"; report an exec's pid too"),
    ("attach-patience", None, "SECONDS", "Drop a client that reads nothing for so long"),
    ("bundle", Some('b'), "PATH", "OCI bundle"),
    ("cid", Some('c'), "ID", "Container ID"),
    ("conmon-pidfile", Some('P'), "FILE", "Write the monitor's pid there"),
    ("container-pidfile", Some('p'), "FILE", "Where the runtime writes the container's pid"),
    ("cuuid", Some('u'), "ID", "Container UUID, or the ID of the exec session"),
    ("exec", Some('e'), "", "Run a process in a container that runs"),
    ("exec-attach", None, "", "Wait for a client before the exec starts"),
    ("exec-process-spec", None, "FILE", "Process of the exec, as JSON"),
    ("exit-command", None, "PATH", "Program to run after the exit"),
    ("exit-command-arg", None, "ARG", "Argument for it; may be repeated"),
    ("exit-delay", None, "SECONDS", "Wait before it is run"),
    ("exit-dir", None, "DIR", "Write the exit status to DIR/ID"),
    ("full-attach", None, "", "Make no symbolic link to the bundle"),
    ("help", Some('h'), "", "Print help"),
    ("keep", None, "SOCKET", "Be the keeper: have containers taken over"),
    ("keeper", None, "SOCKET", "Have the keeper there keep this container"),
    ("leave-stdin-open", None, "", "Keep standard input open when a client's ends"),
    ("log-allowlist-dir", None, "DIR", "Rotate only logs below DIR; may be repeated"),
    ("log-global-size-max", None, "BYTES", "Most that is written to a log in all"),
    ("log-label", None, "KEY=VALUE", "Field of each journal entry; may be repeated"),
    ("log-level", None, "LEVEL", "error, warn, info, debug or trace"),
    ("log-max-files", None, "N", "Full log files to keep, with --log-rotate"),
    ("log-path", Some('l'), "DRIVER:PATH", "Where output goes; may be repeated"),
    ("log-rotate", None, "", "Keep full log files"),
    ("log-size-max", None, "BYTES", "Largest size of a log file"),
    ("log-tag", None, "TAG", "Tag of journal entries"),
    ("name", Some('n'), "NAME", "Container name"),
    ("no-container-partial-message", None, "", "Do not mark incomplete journal entries"),
    ("no-new-keyring", None, "", "Pass --no-new-keyring to the runtime"),
    ("no-pivot", None, "", "Pass --no-pivot to the runtime"),
    ("no-sync-log", None, "", "Do not sync the log to disk after the exit"),
    ("persist-dir", Some('0'), "DIR", "Write the exit status to DIR/exit"),
    ("pidfile", None, "FILE", "The same as --container-pidfile"),
    ("replace-listen-pid", None, "", "Set LISTEN_PID to the runtime's pid"),
    ("restore", None, "PATH", "Restore the container from a checkpoint"),
    ("restore-arg", None, "ARG", "The same as --runtime-opt"),
    ("runtime", Some('r'), "PATH", "OCI runtime"),
    ("runtime-arg", None, "ARG", "Argument before its command; may be repeated"),
    ("runtime-opt", None, "ARG", "Argument behind its command; may be repeated"),
    ("sdnotify-socket", None, "PATH", "Pass sd-notify messages on to this socket"),
    ("socket-dir-path", None, "DIR", "Link DIR/UUID to the bundle"),
    ("stdin", Some('i'), "", "Open standard input"),
    ("sync", None, "", "Stay a child of the caller"),
    ("syslog", None, "", "Write own messages to syslog too"),
    ("systemd-cgroup", Some('s'), "", "Pass --systemd-cgroup to the runtime"),
    ("terminal", Some('t'), "", "Allocate a pseudo-terminal"),
    ("timeout", Some('T'), "SECONDS", "Kill the container after this time"),
    ("version", None, "", "Print version"),
];

impl<'a> Args<'a> {
    /// Where the value of an option goes.
    fn place(&mut self, name: &str) -> Option<Place<'_, 'a>> {
        use Place::{Flag, Given, List, Number, Text};
        let int = i64::from(i32::MAX);
        Some(match name {
            "adopt" => Flag(&mut self.adopt),
            "api-version" => Flag(&mut self.api_version),
            "attach-patience" => Number { at: &mut self.attach_patience, most: int },
            "bundle" => Text(&mut self.bundle),
            "cid" => Text(&mut self.cid),
            "conmon-pidfile" => Text(&mut self.conmon_pidfile),
            "container-pidfile" | "pidfile" => Text(&mut self.container_pidfile),
            "cuuid" => Text(&mut self.cuuid),
            "exec" => Flag(&mut self.exec),
            "exec-attach" => Flag(&mut self.exec_attach),
            "exec-process-spec" => Text(&mut self.exec_process_spec),
            "exit-command" => Text(&mut self.exit_command),
            "exit-command-arg" => List(&mut self.exit_command_args),
            "exit-delay" => Number { at: &mut self.exit_delay, most: int },
            "exit-dir" => Text(&mut self.exit_dir),
            "full-attach" => Flag(&mut self.full_attach),
            "help" => Flag(&mut self.help),
            "keep" => Text(&mut self.keep),
            "keeper" => Text(&mut self.keeper),
            "leave-stdin-open" => Flag(&mut self.leave_stdin_open),
            "log-allowlist-dir" => List(&mut self.log_allowlist_dirs),
            "log-global-size-max" => Number { at: &mut self.log_global_size_max, most: i64::MAX },
            "log-label" => List(&mut self.log_labels),
            "log-level" => Text(&mut self.log_level),
            "log-max-files" => Number { at: &mut self.log_max_files, most: int },
            "log-path" => List(&mut self.log_paths),
            "log-rotate" => Flag(&mut self.log_rotate),
            "log-size-max" => Number { at: &mut self.log_size_max, most: i64::MAX },
            "log-tag" => Text(&mut self.log_tag),
            "name" => Text(&mut self.name),
            "no-container-partial-message" => Flag(&mut self.no_container_partial_message),
            "no-new-keyring" => Flag(&mut self.no_new_keyring),
            "no-pivot" => Flag(&mut self.no_pivot),
            "no-sync-log" => Flag(&mut self.no_sync_log),
            "persist-dir" => Text(&mut self.persist_dir),
            "replace-listen-pid" => Flag(&mut self.replace_listen_pid),
            "restore" => Text(&mut self.restore),
            "restore-arg" | "runtime-opt" => List(&mut self.runtime_opts),
            "runtime" => Text(&mut self.runtime),
            "runtime-arg" => List(&mut self.runtime_args),
            "sdnotify-socket" => Text(&mut self.sdnotify_socket),
            "socket-dir-path" => Given(&mut self.socket_dir_path),
            "stdin" => Flag(&mut self.stdin),
            "sync" => Flag(&mut self.sync),
            "syslog" => Flag(&mut self.syslog),
            "systemd-cgroup" => Flag(&mut self.systemd_cgroup),
            "terminal" => Flag(&mut self.terminal),
            "timeout" => Number { at: &mut self.timeout, most: int },
            "version" => Flag(&mut self.version),
            _ => return None,
        })
    }

    /// Sets an option. The value is the one that was given with it, or else the next word.
    fn set(
        &mut self,
        name: &str,
        given: Option<&'a OsStr>,
        words: &mut impl Iterator<Item = &'a OsStr>,
    ) -> Result<(), String> {
        let Some(place) = self.place(name) else { return Err(format!("Unknown option --{name}")) };
        if let Place::Flag(flag) = place {
            *flag = true;
            return Ok(());
        }
        let value = given.or_else(|| words.next());
        let value = value.ok_or_else(|| format!("Missing argument for --{name}"))?;
        match place {
            Place::Flag(_) => {}
            Place::Text(text) => *text = Some(value),
            Place::Given(text) => *text = value,
            Place::List(list) => list.push(value),
            Place::Number { at, most } => {
                let text = value.display();
                let number = value.to_str().and_then(|text| text.parse::<i128>().ok());
                let number = number
                    .ok_or_else(|| format!("Cannot parse integer value '{text}' for --{name}"))?;
                let in_range =
                    i64::try_from(number).ok().filter(|n| (-most - 1..=most).contains(n));
                *at = in_range
                    .ok_or_else(|| format!("Integer value '{text}' for --{name} out of range"))?;
            }
        }
        Ok(())
    }

    /// A container's id, as it stands in names of files.
    pub(crate) fn id(&self) -> &'a str {
        self.cid.and_then(OsStr::to_str).unwrap_or_default()
    }

    /// The bundle, where there are to be sockets and FIFOs.
    pub(crate) fn bundle(&self) -> Option<&'a Path> {
        self.bundle.map(Path::new)
    }

    /// How long a client may hold the container up.
    pub(crate) fn attach_patience(&self) -> Duration {
        Duration::from_secs(u64::try_from(self.attach_patience).unwrap_or(0))
    }

    /// After how much time the container is killed.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        u64::try_from(self.timeout).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs)
    }

    /// How long to wait before the exit command.
    pub(crate) fn exit_delay(&self) -> Duration {
        Duration::from_secs(u64::try_from(self.exit_delay).unwrap_or(0))
    }

    /// The level of `--log-level`.
    pub(crate) fn level(&self) -> Result<Level, String> {
        let Some(name) = self.log_level else { return Ok(Level::Warning) };
        let level = name.to_str().and_then(Level::named);
        level.ok_or_else(|| format!("No such log level {}", name.display()))
    }

    /// What options require of each other.
    pub(crate) fn check(&self) -> Result<(), String> {
        let fail = |text: &str| Err(text.to_owned());
        if self.restore.is_some() && self.exec {
            return fail("Cannot use 'exec' and 'restore' at the same time");
        }
        if self.exec_attach && !self.exec {
            return fail("Attach can only be specified with exec");
        }
        if self.exec_attach && !self.api_version {
            return fail("Attach can only be specified for a non-legacy exec session");
        }
        if self.cuuid.is_none() && (!self.exec || self.api_version) {
            return fail("Container UUID not provided. Use --cuuid");
        }
        let Some(runtime) = self.runtime else {
            return fail("Runtime path not provided. Use --runtime");
        };
        if let Err(error) = access(runtime, AccessFlags::X_OK) {
            let text = format!("Runtime path {} is not valid: {}", runtime.display(), error.desc());
            return Err(text);
        }
        if self.exec && self.exec_process_spec.is_none() {
            return fail("Exec process spec path not provided. Use --exec-process-spec");
        }
        if self.exit_delay < 0 {
            return fail("Delay before invoking exit command must be greater than or equal to 0");
        }
        Ok(())
    }
}

/// Parses what follows the program's name.
///
/// # Errors
/// A line for standard error.
pub(crate) fn parse<'a>(words: impl Iterator<Item = &'a OsStr>) -> Result<Args<'a>, String> {
    let args = options(words).map_err(|text| format!("conmon: option parsing failed: {text}"))?;
    if args.version || args.help || args.keep.is_some() {
        return Ok(args);
    }
    if args.log_max_files < 0 {
        let count = args.log_max_files;
        return Err(format!("conmon: log-max-files must be non-negative, got {count}"));
    }
    if args.log_rotate && args.log_max_files == 0 {
        let text = "conmon: log-max-files must be at least 1 when log-rotate is enabled, got 0";
        return Err(text.to_owned());
    }
    match args.cid.map(OsStr::to_str) {
        None => Err("conmon: Container ID not provided. Use --cid".to_owned()),
        Some(None) => Err("conmon: the container ID is not UTF-8".to_owned()),
        Some(Some(id)) if id.is_empty() || id.contains('/') || id.starts_with('.') => {
            Err(format!("conmon: {id:?} is no container ID"))
        }
        Some(Some(_)) => Ok(args),
    }
}

fn options<'a>(mut words: impl Iterator<Item = &'a OsStr>) -> Result<Args<'a>, String> {
    let mut args = Args::default();
    while let Some(word) = words.next() {
        let bytes = word.as_bytes();
        if bytes == b"--" {
            break;
        }
        if let Some(long) = bytes.strip_prefix(b"--") {
            let (name, value) = match long.iter().position(|byte| *byte == b'=') {
                Some(at) => (&long[..at], Some(OsStr::from_bytes(&long[at + 1..]))),
                None => (long, None),
            };
            let name = std::str::from_utf8(name).map_err(|_| format!("Unknown option {word:?}"))?;
            args.set(name, value, &mut words)?;
        } else if let [b'-', letters @ ..] = bytes {
            args.set_short(letters, &mut words)?;
        }
    }
    Ok(args)
}

impl<'a> Args<'a> {
    /// Sets the options of these letters, of which the last one may have a value behind it.
    fn set_short(
        &mut self,
        letters: &'a [u8],
        words: &mut impl Iterator<Item = &'a OsStr>,
    ) -> Result<(), String> {
        for (at, letter) in letters.iter().enumerate() {
            let letter = char::from(*letter);
            let named = OPTIONS.iter().find(|(_, short, ..)| *short == Some(letter));
            let name = named.ok_or_else(|| format!("Unknown option -{letter}"))?.0;
            let rest = &letters[at + 1..];
            if matches!(self.place(name), Some(Place::Flag(_))) {
                self.set(name, None, words)?;
                continue;
            }
            let given = (!rest.is_empty()).then(|| OsStr::from_bytes(rest));
            return self.set(name, given, words);
        }
        Ok(())
    }
}

/// The text of `--help`.
pub(crate) fn help() -> String {
    let mut text = "Usage: holdfast-conmon [OPTION…]\n\n\
        The monitor of one container, for podman (conmon_path in containers.conf)\n\
        and CRI-O (monitor_path in crio.conf), in the place of conmon.\n\n\
        Options are read from the variable HOLDFAST_CONMON_OPTIONS first, separated by\n\
        blanks, then from the command line.\n\nOptions:\n"
        .to_owned();
    for (name, letter, value, what) in OPTIONS {
        let letter = letter.map_or("    ".to_owned(), |letter| format!("-{letter}, "));
        let option = format!("{letter}--{name} {value}");
        let _ = writeln!(text, "  {:<29} {what}", option.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<'a>(words: &[&'a str]) -> Result<Args<'a>, String> {
        parse(words.iter().map(|word| OsStr::new(*word)))
    }

    #[test]
    fn every_option_of_the_help_is_read_and_fits_its_line() {
        for (name, letter, value, _) in OPTIONS {
            let mut args = Args::default();
            let place = args.place(name).unwrap_or_else(|| panic!("{name} has a place"));
            assert_eq!(matches!(place, Place::Flag(_)), value.is_empty(), "{name}");
            if let Some(letter) = letter {
                let same = OPTIONS.iter().filter(|(_, other, ..)| *other == Some(letter)).count();
                assert_eq!(same, 1, "-{letter}");
            }
        }
        for line in help().lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn a_value_may_begin_with_dashes_and_be_joined() {
        let args = read(&[
            "--api-version",
            "1",
            "-c",
            "id",
            "-uuid",
            "--runtime-arg",
            "--log-format=json",
            "--runtime-arg=/run/log",
            "--exit-command-arg",
            "--root",
            "--exit-command-arg",
            "--",
            "-it",
            "--timeout=5",
            "--log-size-max",
            "-1",
            "--",
            "--unknown",
        ])
        .unwrap();
        assert!(args.api_version && args.stdin && args.terminal && !args.exec);
        assert_eq!((args.id(), args.cuuid), ("id", Some(OsStr::new("uid"))));
        assert_eq!(args.runtime_args, ["--log-format=json", "/run/log"]);
        assert_eq!(args.exit_command_args, ["--root", "--"]);
        assert_eq!((args.timeout, args.log_size_max), (5, -1));
    }

    #[test]
    fn what_is_wrong_is_said_as_conmon_says_it() {
        for (words, text) in [
            (&["--odd"][..], "option parsing failed: Unknown option --odd"),
            (&["-cX", "-x"], "option parsing failed: Unknown option -x"),
            (&["-c"], "option parsing failed: Missing argument for --cid"),
            (&["-T", "x"], "Cannot parse integer value 'x' for --timeout"),
            (&["--log-max-files", "2147483648"], "out of range"),
            (&["--log-max-files", "-1"], "log-max-files must be non-negative, got -1"),
            (&["--log-rotate", "--log-max-files", "0"], "must be at least 1 when log-rotate"),
            (&[], "Container ID not provided. Use --cid"),
            (&["-c", "a/b"], "is no container ID"),
        ] {
            let error = read(words).unwrap_err();
            assert!(error.starts_with("conmon: ") && error.contains(text), "{error}");
        }
        let checked = |words: &[&str]| read(words).unwrap().check();
        for (words, text) in [
            (&["-c", "x"][..], "Container UUID not provided. Use --cuuid"),
            (&["-c", "x", "-u", "x"], "Runtime path not provided. Use --runtime"),
            (&["-c", "x", "-e"], "Runtime path not provided. Use --runtime"),
            (&["-c", "x", "-u", "x", "-r", "/not/a"], "Runtime path /not/a is not valid"),
            (&["-c", "x", "-r", "/tmp", "-e"], "Exec process spec path not provided"),
            (&["-c", "x", "--exec-attach"], "Attach can only be specified with exec"),
            (&["-c", "x", "-e", "--exec-attach"], "for a non-legacy exec session"),
            (&["-c", "x", "-e", "--restore", "x"], "'exec' and 'restore' at the same time"),
            (&["-c", "x", "-u", "x", "-r", "/tmp", "--exit-delay", "-1"], "Delay before"),
        ] {
            let error = checked(words).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
    }
}
