//! The behaviours that conmon's own test suite tries (its `test/*.bats` at release 2.2.1), each under its name. What
//! that finds in the journal is read from a socket in its place. Its cases about the parsing of cgroup files and
//! of priorities, which call no monitor, are unit tests of `holdfast-sys` and the first tests below.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use holdfast_tests::conmon::{Call, Case, Client, text_of, write_line};
use holdfast_tests::{Proc, eventually};
use serde_json::{Value, json};

/// What most cases run.
const HELLO: &str = "i=0; while [ $i -lt 100 ]; do i=$((i+1)); echo \"hello from ubi10 $i\"; done";

/// A call by which no runtime can be started: the runtime is a directory.
fn configures<'a>(case: &'a Case, args: &[&str]) -> Call<'a> {
    case.bare().id(&case.id).args(["--runtime", "/tmp"]).args(args)
}

/// A path in the directory of the case.
fn at(case: &Case, text: &str) -> String {
    text.replace("LOG", &case.log_path().display().to_string())
}

/// Cases of a command line that is refused, and what is said.
macro_rules! refused {
    ($($name:ident: $args:expr => $text:expr;)*) => {
        $(
            #[test]
            fn $name() {
                let case = Case::script("true");
                let args: Vec<String> = $args.iter().map(|arg| at(&case, arg)).collect();
                let output = case.bare().args(&args).ends();
                let said = String::from_utf8_lossy(&output.stderr);
                assert_eq!(output.status.code(), Some(1), "{said}");
                assert!(said.contains($text), "{said}");
            }
        )*
    };
}

/// Cases of a command line that is taken, and the files that there are then or are not.
macro_rules! accepted {
    ($($name:ident: $args:expr => $files:expr, no $others:expr;)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                let case = Case::script("true");
                let args: Vec<String> = $args.iter().map(|arg| at(&case, arg)).collect();
                let args: Vec<&str> = args.iter().map(String::as_str).collect();
                configures(&case, &args).detaches().ended().await;
                let (files, others): (&[&str], &[&str]) = (&$files, &$others);
                for file in files {
                    assert!(case.path().join(file).is_file(), "{file}");
                }
                for file in others {
                    assert!(!case.path().join(file).exists(), "{file}");
                }
            }
        )*
    };
}

mod basic {
    use super::*;

    #[test]
    fn conmon_version() {
        let case = Case::script("true");
        let output = case.bare().args(["--version"]).ends();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success());
        let version = said.split_whitespace().nth(2).expect("a third word");
        let numbers: Vec<_> = version.split('.').map(str::parse::<u32>).collect();
        assert!(said.starts_with("conmon version ") && numbers.len() == 3, "{said}");
        assert!(numbers.iter().all(Result::is_ok) && said.contains("\ncommit: "), "{said}");
    }

    refused! {
        no_container_id_should_fail: [""; 0] => "Container ID not provided. Use --cid";
        no_container_uuid_should_fail: ["--cid", "x"] => "Container UUID not provided. Use --cuuid";
        no_runtime_path_should_fail: ["-cx", "-ux"] => "Runtime path not provided. Use --runtime";
        invalid_runtime_path_should_fail:
            ["-cx", "-ux", "-r/not/a/path"] => "Runtime path /not/a/path is not valid";
        no_log_driver_should_fail: ["-cx", "-ux", "-r/tmp"] => "Log driver not provided. Use --log-path";
        empty_log_driver_should_fail: ["-cx", "-ux", "-r/tmp", "-l", ""] => "log-path must not be empty";
        empty_log_driver_and_path_should_fail:
            ["-cx", "-ux", "-r/tmp", "-l", ":"] => "log-path must not be empty";
        k8s_file_requires_a_filename:
            ["-cx", "-ux", "-r/tmp", "-l", "k8s-file"] => "k8s-file requires a filename";
        k8s_file_with_a_colon_requires_a_filename:
            ["-cx", "-ux", "-r/tmp", "-l", "k8s-file:"] => "k8s-file requires a filename";
        log_driver_as_journald_with_short_cid_should_fail:
            ["-cabcdefghijkl", "-ux", "-r/tmp", "-l", "journald:"] =>
            "Container ID must be longer than 12 characters";
        log_driver_as_k8s_file_with_invalid_path_should_fail:
            ["-cx", "-ux", "-r/tmp", "-l", "k8s-file:/not/a/path"] => "Failed to open log file";
        log_driver_as_invalid_driver_should_fail:
            ["-cx", "-ux", "-r/tmp", "-l", "invalid:LOG"] => "No such log driver invalid";
        log_driver_as_invalid_driver_with_blank_path_should_fail:
            ["-cx", "-ux", "-r/tmp", "-l", "invalid:"] => "No such log driver invalid";
        multiple_log_drivers_with_one_invalid_should_fail:
            ["-cx", "-ux", "-r/tmp", "-l", "k8s-file:LOG", "-l", "invalid:LOG"] =>
            "No such log driver invalid";
    }

    accepted! {
        log_driver_as_path_should_pass: ["--log-path", "LOG"] => ["log"], no [];
        log_driver_as_k8s_file_path_should_pass: ["--log-path", "k8s-file:LOG"] => ["log"], no [];
        log_driver_as_colon_path_should_pass: ["--log-path", ":LOG"] => ["log"], no [];
        log_driver_as_none_should_pass: ["--log-path", "none:"] => [], no ["none"];
        log_driver_as_off_should_pass: ["--log-path", "off:"] => [], no ["off"];
        log_driver_as_null_should_pass: ["--log-path", "null:"] => [], no ["null"];
        log_driver_as_journald_should_pass: ["--log-path", "journald:"] => [], no ["journald"];
        log_driver_as_colon_journald_should_pass: ["--log-path", ":journald"] => ["journald"], no [];
        multiple_log_drivers_should_pass:
            ["--log-path", "k8s-file:LOG", "--log-path", "journald:"] => ["log"], no [];
    }
}

/// A socket in the place of the journal's.
struct Journal {
    socket: UnixDatagram,
    driver: String,
}

impl Journal {
    fn of(case: &Case) -> Self {
        let path = case.path().join("journal");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a limit");
        Self { socket, driver: format!("journald:{}", path.display()) }
    }

    /// The next entry, as text: what stands between is not text, and nobody asks for it.
    fn entry(&self) -> String {
        let mut room = vec![0; 300_000];
        let length = self.socket.recv(&mut room).expect("an entry");
        String::from_utf8_lossy(&room[..length]).replace('\0', "")
    }
}

mod ctr_logs {
    use super::*;

    accepted! {
        log_driver_as_passthrough_should_pass: ["--log-path", "passthrough:"] => [], no [];
        no_container_partial_message_option_should_pass_with_journald:
            ["--log-path", "journald:", "--no-container-partial-message"] => [], no [];
    }

    refused! {
        journald_with_log_label_no_equals_sign_in_label:
            ["-cabcdefghijklm", "-ux", "-r/tmp", "-l", "journald:", "--log-label", "LABEL1"] =>
            "Container labels must be in format LABEL=VALUE";
        journald_with_log_label_multiple_equals_signs_in_label:
            ["-cabcdefghijklm", "-ux", "-r/tmp", "-l", "journald:", "--log-label", "L=FOO=x"] =>
            "Container labels must be in format LABEL=VALUE";
        journald_with_log_label_no_label_name:
            ["-cabcdefghijklm", "-ux", "-r/tmp", "-l", "journald:", "--log-label", "=x"] =>
            "Container labels must be in format LABEL=VALUE";
        journald_with_log_label_invalid_character:
            ["-cabcdefghijklm", "-ux", "-r/tmp", "-l", "journald:", "--log-label", "MY%LABEL=x"] =>
            "Container label names must contain only uppercase letters, numbers and underscore";
        k8s_file_with_log_label:
            ["-cx", "-ux", "-r/tmp", "-l", "k8s-file:LOG", "--log-label", "LABEL1=x"] =>
            "k8s-file doesn't support --log-label";
        k8s_file_with_log_tag:
            ["-cx", "-ux", "-r/tmp", "-l", "k8s-file:LOG", "--log-tag", "TAG"] =>
            "k8s-file doesn't support --log-tag";
    }

    #[test]
    fn no_container_partial_message_should_warn_without_journald() {
        let case = Case::script("true");
        let log = case.log_path().display().to_string();
        let output = configures(&case, &["-l", &log, "--no-container-partial-message"]).ends();
        assert!(output.status.success());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("no effect without journald log driver"), "{said}");
    }

    #[tokio::test]
    async fn journald_with_log_label() {
        let case = Case::script(HELLO);
        let journal = Journal::of(&case);
        let call = case.without_log().args(["-l", &journal.driver]);
        let monitor =
            call.args(["--log-label", "LABEL1=one", "--log-label", "LABEL2=two"]).starts();
        let entry = journal.entry();
        assert!(
            entry.contains("hello from ubi10") && entry.contains("LABEL1\n\u{3}one"),
            "{entry}"
        );
        assert!(entry.contains("LABEL2\n\u{3}two"), "{entry}");
        drop(journal);
        monitor.ended().await;
    }

    #[tokio::test]
    async fn journald_with_log_tag() {
        let case = Case::script(HELLO);
        let journal = Journal::of(&case);
        let call = case.without_log().args(["-l", &journal.driver, "--log-tag", "my_tag"]);
        let monitor = call.starts();
        let entry = journal.entry();
        assert!(entry.contains("CONTAINER_TAG\n\u{6}my_tag"), "{entry}");
        drop(journal);
        monitor.ended().await;
    }

    #[tokio::test]
    async fn journald_partial_message() {
        let case = Case::script("yes '#' | tr -d '\\n' | head -c 65535");
        let journal = Journal::of(&case);
        let monitor = case.without_log().args(["-l", &journal.driver]).starts();
        let entry = journal.entry();
        assert!(entry.contains("CONTAINER_PARTIAL_MESSAGE\n\u{4}true") && entry.contains("######"));
        monitor.ended().await;
        let case = Case::script("printf '#'");
        let journal = Journal::of(&case);
        let call =
            case.without_log().args(["-l", &journal.driver, "--no-container-partial-message"]);
        let monitor = call.starts();
        assert!(!journal.entry().contains("PARTIAL"));
        monitor.ended().await;
    }

    #[tokio::test]
    async fn k8s_partial_message() {
        let case = Case::script("yes '#' | tr -d '\\n' | head -c 65535");
        case.monitor().runs().await;
        assert!(case.log().contains("stdout P ####"));
    }
}

mod runtime {
    use super::*;

    #[tokio::test]
    async fn simple_runtime_test() {
        let case = Case::script(HELLO);
        case.monitor().runs().await;
        assert!(case.log().contains("hello from ubi10 100"));
    }

    #[tokio::test]
    async fn container_execution_with_multiple_log_drivers() {
        let case = Case::script("echo hello from ubi10");
        let journal = Journal::of(&case);
        case.monitor().args(["--log-path", &journal.driver]).runs().await;
        assert!(case.log().contains("hello from ubi10"));
        assert!(journal.entry().contains("hello from ubi10"));
    }

    #[tokio::test]
    async fn container_with_log_size_limit() {
        let case = Case::script(HELLO);
        case.monitor().args(["--log-size-max", "10"]).runs().await;
        let log = case.log();
        assert!(log.ends_with("hello from ubi10 100\n") && log.lines().count() == 1, "{log}");
    }

    #[test]
    fn invalid_runtime_binary_should_fail() {
        let case = Case::script("true");
        let call = case.bare().id(&case.id).args(["-r", "/nonexistent/runtime", "-l", "none"]);
        assert!(!call.ends().status.success());
    }

    #[tokio::test]
    async fn simple_test_with_oci_syncpipe_defined() {
        let case = Case::script(HELLO);
        let file = case.path().join("pidfile");
        let pid_file = ["--container-pidfile".as_ref(), file.as_os_str()];
        let (call, records) = case.monitor().args(pid_file).sync_pipe();
        let monitor = call.detaches();
        let told = records.next()["pid"].to_string();
        assert_eq!(told, fs::read_to_string(file).expect("the pid file"));
        case.start();
        monitor.ended().await;
    }

    #[tokio::test]
    async fn runc_error_with_oci_syncpipe_defined() {
        let case = Case::script("true");
        fs::write(case.bundle().join("config.json"), "{ \"ociVersion\": \"").expect("write");
        let (call, records) = case.monitor().sync_pipe();
        let monitor = call.detaches();
        let record = records.next();
        let message = record["message"].as_str().expect("a message");
        assert!(record["pid"] == -1 && !message.is_empty(), "{record}");
        monitor.ended().await;
    }
}

mod exec_exit_status {
    use super::*;

    #[test]
    fn conmon_help_contains_exec_option() {
        let case = Case::script("true");
        let output = case.bare().args(["--help"]).ends();
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains("--exec"));
    }

    refused! {
        exec_requires_proper_arguments:
            ["-ctest", "-utest", "-r/bin/true", "--exec", "--socket-dir-path", "/tmp",
                "--container-pidfile", "/dev/null", "--log-path", "/dev/null"] =>
            "Exec process spec path not provided";
    }
}

mod log_management {
    use super::*;

    refused! {
        should_validate_log_max_files_bounds_negative:
            ["-cx", "-ux", "-r/tmp", "-lLOG", "--log-rotate", "--log-max-files", "-1"] =>
            "log-max-files must be non-negative";
        should_validate_log_max_files_bounds_excessive:
            ["-cx", "-ux", "-r/tmp", "-lLOG", "--log-rotate", "--log-max-files", "2147483648"] =>
            "out of range";
        should_validate_log_max_files_bounds_zero:
            ["-cx", "-ux", "-r/tmp", "-lLOG", "--log-rotate", "--log-max-files", "0"] =>
            "log-max-files must be at least 1 when log-rotate is enabled";
    }

    accepted! {
        should_default_to_truncation_behavior:
            ["-l", "k8s-file:LOG", "--log-size-max", "1024"] => ["log"], no ["log.1"];
        should_enable_rotation_with_proper_flags:
            ["-l", "k8s-file:LOG", "--log-rotate", "--log-max-files", "2", "--log-size-max", "1024"]
            => ["log"], no [];
        should_handle_a_tiny_size_limit:
            ["-l", "k8s-file:LOG", "--log-rotate", "--log-max-files", "2", "--log-size-max", "50"]
            => ["log"], no [];
        should_handle_a_size_limit_of_zero:
            ["-l", "k8s-file:LOG", "--log-size-max", "0"] => ["log"], no [];
        should_handle_rotation_without_a_size_limit:
            ["-l", "k8s-file:LOG", "--log-rotate", "--log-max-files", "2"] => ["log"], no [];
        should_ignore_log_max_files_without_rotation:
            ["-l", "k8s-file:LOG", "--log-max-files", "5", "--log-size-max", "1024"]
            => ["log"], no ["log.1"];
        should_work_with_multiple_log_drivers:
            ["-l", "k8s-file:LOG", "-l", "journald:", "--log-rotate", "--log-max-files", "2"]
            => ["log"], no [];
    }

    #[tokio::test]
    async fn should_handle_secure_file_permissions() {
        let case = Case::script("true");
        let log = format!("k8s-file:{}", case.log_path().display());
        configures(&case, &["-l", &log, "--log-rotate"]).detaches().ended().await;
        let mode = fs::metadata(case.log_path()).expect("the log").permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
    }

    #[tokio::test]
    async fn should_rotate_below_a_link_too() {
        let case = Case::script(HELLO);
        fs::create_dir(case.path().join("real")).expect("make a directory");
        symlink("real", case.path().join("link")).expect("make a link");
        let log = format!("k8s-file:{}", case.path().join("link/test.log").display());
        let call = case.without_log().args(["-l", &log, "--log-rotate", "--log-size-max", "1000"]);
        call.runs().await;
        assert!(case.path().join("real/test.log.1").exists());
    }

    #[tokio::test]
    async fn should_work_with_multiple_log_allowlist_directories() {
        let case = Case::script("true");
        let [one, two] = ["one", "two"].map(|name| {
            let dir = case.path().join(name);
            fs::create_dir(&dir).expect("make a directory");
            dir.display().to_string()
        });
        let log = format!("k8s-file:{two}/log");
        let dirs = ["-l", &log, "--log-rotate", "--log-allowlist-dir", &one];
        let both = [&dirs[..], &["--log-allowlist-dir", &two]].concat();
        configures(&case, &both).detaches().ended().await;
        assert!(case.path().join("two/log").exists());
        // conmon would go on, and not rotate.
        let output = configures(&case, &dirs).ends();
        assert_eq!(output.status.code(), Some(1));
    }
}

mod priority_parsing {
    use super::*;

    #[tokio::test]
    async fn prefixes_are_parsed_if_they_are_valid_and_stand_at_the_beginning_of_a_line() {
        let lines = [
            ("<0>Emergency", "Emergency", '0'),
            ("<7>Debug", "Debug", '7'),
            ("Regular", "Regular", '6'),
            ("<8>Invalid", "<8>Invalid", '6'),
            ("<>Empty", "<>Empty", '6'),
            ("<<0>>Double", "<<0>>Double", '6'),
            ("<0 Missing", "<0 Missing", '6'),
            ("< 0>Space", "< 0>Space", '6'),
            ("<1>Multi<2>line", "Multi<2>line", '1'),
            ("<3>", "", '3'),
            ("<", "<", '6'),
        ];
        let script: Vec<_> = lines.iter().map(|(line, ..)| format!("echo '{line}'")).collect();
        let case = Case::script(&script.join("; "));
        let journal = Journal::of(&case);
        let monitor = case.without_log().args(["-l", &journal.driver]).starts();
        for (line, message, priority) in lines {
            let entry = journal.entry();
            let length = char::from(u8::try_from(message.len()).expect("a short message"));
            let length = if length == '\0' { String::new() } else { length.to_string() };
            assert!(entry.contains(&format!("PRIORITY\n\u{1}{priority}\n")), "{line}: {entry}");
            assert!(entry.ends_with(&format!("MESSAGE\n{length}{message}\n")), "{line}: {entry:?}");
        }
        monitor.ended().await;
    }
}

mod attach {
    use super::*;

    const CAT: &str = "cat && echo 'Container stopped!'";

    #[tokio::test]
    async fn attach_to_container_and_send_string_to_stdin() {
        let case = Case::script(CAT);
        let monitor = case.monitor().args(["--stdin"]).starts();
        let path = case.bundle().join("attach");
        let client = Client::attach(&path);
        client.send(b"Hello there!\n");
        drop(client);
        monitor.ended().await;
        assert!(case.log().contains("Hello there!") && case.log().contains("Container stopped!"));
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn container_finishes_immediately_without_stdin() {
        let case = Case::script(CAT);
        case.monitor().runs().await;
        assert!(case.log().contains("Container stopped!"));
    }

    #[tokio::test]
    async fn unix_socket_remains_open_with_leave_stdin_open() {
        let case = Case::script(CAT);
        let _monitor = case.monitor().args(["--stdin", "--leave-stdin-open"]).starts();
        for text in ["Hello there!", "Hello there again!"] {
            let client = Client::attach(&case.bundle().join("attach"));
            client.send(format!("{text}\n").as_bytes());
            drop(client);
            eventually("the line", || case.log().contains(text)).await;
            assert!(!case.log().contains("Container stopped!"));
        }
    }
}

/// What the container waits for, and says.
const WAITS: &str = "while [ ! -f /test.txt ]; do sleep 0.1; done; cat /test.txt";
/// What an exec does that ends the container.
const ENDS: &str = "echo 'Hello from exec!' && echo 'Hello there!' > /t && mv /t /test.txt";

mod exec {
    use super::*;

    fn legacy<'a>(case: &'a Case, script: &str) -> Call<'a> {
        let process = case.process(&["sh", "-c", script], false);
        case.legacy_exec(&process).args(["-u", &case.id])
    }

    /// Ends the container as `ENDS` does. That kills an exec that has not ended yet, so one whose
    /// own status counts can't do so itself.
    fn end(case: &Case) {
        let beside = case.bundle().join("rootfs/t");
        fs::write(&beside, "Hello there!\n").expect("write a file");
        fs::rename(&beside, case.bundle().join("rootfs/test.txt")).expect("rename");
    }

    fn exec_log(case: &Case) -> String {
        fs::read_to_string(case.log_path().with_extension("exec")).unwrap_or_default()
    }

    #[tokio::test]
    async fn simple_exec_exec_process_spec() {
        let case = Case::script(WAITS);
        let monitor = case.monitor().starts();
        let exec = legacy(&case, ENDS).detaches();
        monitor.ended().await;
        exec.ended().await;
        assert!(case.log().contains("Hello there!"));
        assert!(exec_log(&case).contains("Hello from exec!"));
    }

    refused! {
        exec_attach_without_api_version:
            ["-cx", "-ux", "-r/tmp", "-lLOG", "--sync", "--exec", "--exec-process-spec", "/p",
                "--exec-attach"] =>
            "Attach can only be specified for a non-legacy exec session";
        exec_attach_without_oci_attachpipe_env_variable:
            ["-cx", "-ux", "-r/tmp", "-lLOG", "--api-version", "1", "--sync", "--exec",
                "--exec-process-spec", "/p", "--exec-attach"] =>
            "--attach specified but _OCI_ATTACHPIPE was not";
    }

    #[tokio::test]
    async fn exec_attach() {
        let case = Case::script(WAITS);
        let monitor = case.monitor().starts();
        let (call, attached) = legacy(&case, ENDS).args(["--api-version", "1"]).attach_pipe();
        let exec = call.detaches();
        assert_eq!(attached.next(), json!({ "data": 0 }));
        exec.ended().await;
        monitor.ended().await;
    }

    #[tokio::test]
    async fn exec_attach_with_oci_startpipe() {
        let case = Case::script(WAITS);
        let monitor = case.monitor().starts();
        let (call, attached) = legacy(&case, ENDS).args(["--api-version", "1"]).attach_pipe();
        let (call, mut start) = call.start_pipe();
        start.write_all(b"start conmon\n").expect("write");
        let exec = call.detaches();
        let _ = attached.next();
        assert_eq!(exec_log(&case), "");
        start.write_all(b"start attach\n").expect("write");
        exec.ended().await;
        monitor.ended().await;
        assert!(exec_log(&case).contains("Hello from exec!"));
    }

    #[tokio::test]
    async fn exec_with_oci_syncpipe_defined() {
        let case = Case::script(WAITS);
        let monitor = case.monitor().starts();
        let (call, records) = legacy(&case, "echo 'Hello from exec!'").sync_pipe();
        let exec = call.detaches();
        assert_eq!(records.next(), json!({ "exit_code": 0 }));
        exec.ended().await;
        end(&case);
        monitor.ended().await;
    }

    #[tokio::test]
    async fn exec_api_version_1_with_oci_syncpipe_defined() {
        let case = Case::script(WAITS);
        let monitor = case.monitor().starts();
        let call = legacy(&case, "echo 'Hello from exec!'").args(["--api-version", "1"]);
        let (call, records) = call.sync_pipe();
        let exec = call.detaches();
        assert!(records.next()["data"].as_i64().expect("a pid") > 0);
        assert_eq!(records.next(), json!({ "data": 0 }));
        exec.ended().await;
        end(&case);
        monitor.ended().await;
    }

    #[tokio::test]
    async fn runtime_failure_is_reported_to_the_sync_pipe() {
        let case = Case::script(WAITS);
        let _monitor = case.monitor().starts();
        let process = case.process(&["/no/such/binary"], false);
        let call = case.legacy_exec(&process).args(["--api-version", "1", "-u", &case.id]);
        let (call, records) = call.sync_pipe();
        call.detaches().ended().await;
        let record: Value = records.next();
        assert_eq!(record["data"], -1);
        assert!(record["message"].as_str().expect("a message").contains("exec failed"), "{record}");
    }
}

mod ctrl {
    use super::*;

    /// The size of a terminal behind a line of `ctl`.
    async fn size_behind(line: &str) -> String {
        let case = Case::script("while [ ! -e /over ]; do sleep 0.05; done; stty size");
        case.with_terminal();
        let monitor = case.monitor().args(["-t"]).starts();
        write_line(&case.bundle().join("ctl"), line);
        // Behind it the log is opened anew, so that the line was read by then.
        fs::remove_file(case.log_path()).expect("remove the log");
        write_line(&case.bundle().join("ctl"), "2 1 1");
        eventually("the new log", || case.log_path().exists()).await;
        File::create(case.bundle().join("rootfs/over")).expect("make a file");
        monitor.ended().await;
        let text = text_of(&case.log());
        let size = text.lines().last().expect("a line").trim_end();
        // So busybox says it.
        if size.starts_with("stty: ") { "0 0" } else { size }.to_owned()
    }

    macro_rules! sizes {
        ($($name:ident: $line:expr => $size:expr;)*) => {
            $(
                #[tokio::test]
                async fn $name() {
                    assert_eq!(size_behind(&$line.to_string()).await, $size);
                }
            )*
        };
    }

    sizes! {
        resize_the_terminal_negative_width_and_height: "1 -1 -1" => "0 0";
        resize_the_terminal_not_enough_variables: "1 2" => "0 0";
        resize_the_terminal_no_variables: "1" => "0 0";
        resize_the_terminal_too_many_variables: "1 2 2 3" => "2 2";
        resize_the_terminal_too_long_line: format!("1 2 2 {}", "#".repeat(65_535)) => "0 0";
        resize_the_terminal: "1 2 2" => "2 2";
        unknown_message_foo: "foo" => "0 0";
        unknown_message_999: "999" => "0 0";
        unknown_message_999_2_2: "999 2 2" => "0 0";
        resize_with_floating_point_dimensions: "1 10.5 20.3" => "0 0";
        resize_with_hex_numbers: "1 0x10 0x20" => "0 0";
        resize_overflow_rejected: "1 100000 100000" => "0 0";
        resize_with_leading_zeros: "1 0010 0020" => "10 20";
        maximum_valid_size: "1 1000 1000" => "1000 1000";
        size_exceeding_maximum_height_too_large: "1 1001 1000" => "0 0";
        size_exceeding_maximum_width_too_large: "1 1000 1001" => "0 0";
        size_exceeding_maximum_both_too_large: "1 65535 65535" => "0 0";
    }

    #[tokio::test]
    async fn rotate_logs_with_log_rotate() {
        let case = Case::script(
            "echo 'before rotation'; while [ ! -e /over ]; do sleep 0.05; done; echo 'after rotation'",
        );
        case.with_terminal();
        let monitor: Proc = case.monitor().args(["-t", "--log-rotate"]).starts();
        eventually("the first line", || case.log().contains("before")).await;
        write_line(&case.bundle().join("ctl"), "2 1 1");
        let rotated = case.log_path().with_extension("1");
        eventually("the rotation", || rotated.exists()).await;
        File::create(case.bundle().join("rootfs/over")).expect("make a file");
        monitor.ended().await;
        assert!(fs::read_to_string(rotated).expect("the old log").contains("before rotation"));
        let log = case.log();
        assert!(log.contains("after rotation") && !log.contains("before rotation"), "{log}");
    }
}
