//! What users of docker type and Holdfast does not have: each error says what to type in its place.

use clap::Parser;
use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::Args;

const IMAGES: &str = "Holdfast has no images of its own: docs/images.md says how to get a directory from one, for \
                      --rootfs DIR";
const NETWORKS: &str = "Holdfast sets up no networks: --network host, or a namespace of your own with --network ns:PATH";
const VOLUMES: &str = "a directory of the host is a volume: -v DIR:PATH";

/// Returns what stands in the place of a command of docker.
fn of_command(name: &str) -> Option<&'static str> {
    Some(match name {
        "pull" | "push" | "build" | "images" | "image" | "rmi" | "tag" | "save" | "load"
        | "import" | "export" | "search" | "login" | "logout" | "history" | "diff" | "commit" => {
            IMAGES
        }
        "network" | "port" => NETWORKS,
        "volume" => VOLUMES,
        "container" => "its commands stand alone: `holdfast ls`, `holdfast rm`, `holdfast prune`",
        "system" => "`holdfast info` shows the daemon, `holdfast prune` deletes what has stopped",
        "rename" => "an id does not change: it names the directory and the cgroup of the container",
        "compose" | "pod" | "swarm" | "service" | "stack" => {
            "for many machines or pods: docs/kubernetes.md"
        }
        _ => return None,
    })
}

/// Returns what stands in the place of a flag of docker.
fn of_flag(flag: &str) -> Option<&'static str> {
    Some(match flag {
        "-p" | "-P" | "--publish" | "--publish-all" | "--expose" | "--link" | "--dns" | "--ip"
        | "--add-host" | "--net" => NETWORKS,
        "--privileged" => {
            "each part has its option: --cap-add ALL, --security-opt seccomp=unconfined, --device"
        }
        "--memory-swap"
        | "--memory-swappiness"
        | "--memory-reservation"
        | "--cpuset-cpus"
        | "--blkio-weight" => {
            "limits without an option: linux.resources in config.json, or `holdfast update`"
        }
        "--pull" | "--platform" => IMAGES,
        "--volumes-from" | "--volume-driver" => VOLUMES,
        "--log-driver" | "--log-opt" => "--log DRIVER[:PATH][,...], for example --log journald",
        "--gpus" | "--cdi" => "their tools change a config.json: --bundle DIR",
        _ => return None,
    })
}

/// Adds to an error what helps.
fn add(error: &mut clap::Error) {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.as_str(),
        Some(ContextValue::Strings(all)) => all.first().map_or("", String::as_str),
        _ => "",
    };
    let tips = match error.kind() {
        ErrorKind::InvalidSubcommand => {
            Vec::from_iter(of_command(text(ContextKind::InvalidSubcommand)))
        }
        ErrorKind::UnknownArgument => Vec::from_iter(of_flag(text(ContextKind::InvalidArg))),
        ErrorKind::MissingRequiredArgument if text(ContextKind::InvalidArg) == "--bundle <DIR>" => {
            let wanted = ["--rootfs <DIR|host>, or --bundle <DIR>".to_owned()];
            error.insert(ContextKind::InvalidArg, ContextValue::Strings(wanted.into()));
            // It names one of them only, and global options.
            error.remove(ContextKind::Usage);
            vec!["--rootfs host shows the programs of this machine to the container", IMAGES]
        }
        _ => return,
    };
    if !tips.is_empty() {
        // What is spelled alike is something else.
        error.remove(ContextKind::SuggestedSubcommand);
        error.remove(ContextKind::SuggestedArg);
        let tips = tips.into_iter().map(StyledStr::from).collect();
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
    }
}

/// Returns the error with what helps; for a line without a command, the help.
pub(super) fn helpful(mut error: clap::Error) -> clap::Error {
    if error.kind() == ErrorKind::MissingSubcommand {
        return Args::try_parse_from(["holdfast", "--help"]).err().unwrap_or(error);
    }
    add(&mut error);
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(line: &str) -> String {
        let error = Args::try_parse_from(line.split(' ')).expect_err("it is no command line");
        helpful(error).to_string()
    }

    #[test]
    fn what_docker_has_is_answered_by_what_to_type_instead() {
        for (line, tip) in [
            ("holdfast pull busybox", "docs/images.md"),
            ("holdfast login", "docs/images.md"),
            ("holdfast network ls", "--network host"),
            ("holdfast container ls", "`holdfast ls`"),
            ("holdfast run -p 80:80 --rootfs host true", "--network host"),
            ("holdfast run --rootfs host --privileged true", "--cap-add ALL"),
            ("holdfast run --rootfs host --memory-swap 1g true", "config.json"),
        ] {
            let said = said(line);
            assert_eq!(said.matches("tip:").count(), 1, "{said}");
            assert!(said.contains(tip), "{said}");
        }
        assert!(said("holdfast lgos web").contains("similar"));
    }

    #[test]
    fn an_image_in_the_place_of_a_root_is_answered_by_what_a_root_is() {
        for line in
            ["holdfast run busybox sh", "holdfast run -it busybox", "holdfast create busybox"]
        {
            let said = said(line);
            assert!(said.contains("--rootfs <DIR|host>, or --bundle <DIR>"), "{said}");
            assert!(said.contains("docs/images.md") && !said.contains("Usage"), "{said}");
        }
    }

    #[test]
    fn without_a_command_the_help_is_shown() {
        let said = said("holdfast --root /x");
        assert!(said.contains("Commands:") && said.contains("Examples:"), "{said}");
        assert!(!said.contains("error:"), "{said}");
    }
}
