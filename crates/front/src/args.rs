//! The command line, as Go's package `flag` reads it: `-name VALUE`, `-name=VALUE`, one dash or two.

/// What the program is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Be the front of a pod.
    Serve,
    /// `start`: have a front for a container.
    Start,
    /// `delete`: remove what is left of a container.
    Delete,
    /// `launch`, which only this program uses: start the supervisor.
    Launch,
    /// `-info`: describe the runtime.
    Info,
    /// `-v`: print the version.
    Version,
}

/// The command line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Args<'a> {
    /// The namespace of the container.
    pub(crate) namespace: &'a str,
    /// The container.
    pub(crate) id: &'a str,
    /// Where containerd's API is.
    pub(crate) address: &'a str,
    /// The bundle; empty if it is the working directory.
    pub(crate) bundle: &'a str,
    /// Whether containerd logs at the level of debugging.
    pub(crate) debug: bool,
    /// What to do.
    pub(crate) action: Action,
}

/// Parses what follows the program's name.
pub(crate) fn parse<'a>(words: impl Iterator<Item = &'a str>) -> Result<Args<'a>, String> {
    let mut words = words.peekable();
    let mut args = Args {
        namespace: "",
        id: "",
        address: "",
        bundle: "",
        debug: false,
        action: Action::Serve,
    };
    let (mut version, mut info) = (false, false);
    while let Some(word) = words.next_if(|word| word.starts_with('-') && *word != "-") {
        if word == "--" {
            break;
        }
        let flag = word.strip_prefix("--").or(word.strip_prefix('-')).unwrap_or(word);
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (flag, None),
        };
        match name {
            "debug" => args.debug = truth(name, value)?,
            "v" | "version" => version = truth(name, value)?,
            "info" => info = truth(name, value)?,
            _ => {
                let mut unused = "";
                let place = match name {
                    "namespace" => &mut args.namespace,
                    "id" => &mut args.id,
                    "address" => &mut args.address,
                    "bundle" => &mut args.bundle,
                    // Events go by ttrpc, and the sockets are found without.
                    "publish-binary" | "socket" | "debug-socket" => &mut unused,
                    _ => return Err(format!("flag provided but not defined: -{name}")),
                };
                let value = value.or_else(|| words.next());
                *place = value.ok_or_else(|| format!("flag needs an argument: -{name}"))?;
            }
        }
    }
    args.action = match words.next() {
        _ if version => Action::Version,
        _ if info => Action::Info,
        None => Action::Serve,
        Some("start") => Action::Start,
        Some("delete") => Action::Delete,
        Some("launch") => Action::Launch,
        Some(other) => return Err(format!("unknown action {other:?}: use start or delete")),
    };
    Ok(args)
}

/// Parses the value of a flag that needs none.
fn truth(name: &str, value: Option<&str>) -> Result<bool, String> {
    match value {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(other) => Err(format!("invalid boolean value {other:?} for -{name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Result<Args<'_>, String> {
        parse(line.split(' ').filter(|word| !word.is_empty()))
    }

    #[test]
    fn the_command_lines_of_containerd_are_understood() {
        let start = of(
            "-namespace k8s.io -address /c.sock -publish-binary /usr/bin/containerd -id a -debug start",
        );
        let expected = Args {
            namespace: "k8s.io",
            id: "a",
            address: "/c.sock",
            bundle: "",
            debug: true,
            action: Action::Start,
        };
        assert_eq!(start, Ok(expected));
        let delete =
            of("--namespace=n --address=/c.sock --publish-binary= -id=a -bundle /b delete")
                .unwrap();
        assert_eq!((delete.id, delete.bundle, delete.action), ("a", "/b", Action::Delete));
        let front = of("-namespace n -id a -address /c.sock").unwrap();
        assert_eq!((front.action, front.debug), (Action::Serve, false));
        assert_eq!(of("-v").unwrap().action, Action::Version);
        assert_eq!(of("-version").unwrap().action, Action::Version);
        assert_eq!(of("-info").unwrap().action, Action::Info);
        assert!(!of("-debug=false start").unwrap().debug);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for bad in ["-nonsense start", "-id", "-debug=maybe start", "restart"] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_value_may_look_like_a_flag_and_what_follows_the_action_is_none() {
        assert_eq!(
            of("-id -x start -debug").unwrap(),
            Args {
                namespace: "",
                id: "-x",
                address: "",
                bundle: "",
                debug: false,
                action: Action::Start,
            }
        );
    }
}
