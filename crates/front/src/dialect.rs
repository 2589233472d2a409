//! How `start` is asked, and how it answers: containerd has two ways.
//!
//! containerd 2.3 and later give `BootstrapParams` and take a `BootstrapResult`. Older ones give the
//! options of the runtime or nothing. All of these take a plain address, which stands for version 2 of
//! the Task service: 1.6 takes nothing else, and nothing says whether one since 1.7 takes version 3. So
//! they get that, whatever `MAX_SHIM_VERSION` says (it is 2 in all that set it).

use std::path::PathBuf;

use holdfast_ttrpc::Message;
use holdfast_ttrpc::bootstrap::{BootstrapParams, BootstrapResult};
use holdfast_ttrpc::types::{Any, LinuxCreateOptions, RuncOptions};

/// What `start` is asked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// As containerd 2.3 and later do.
    Bootstrap(Box<BootstrapParams>),
    /// As older ones do: the options of the runtime, if there are any.
    Plain(Option<Any>),
}

/// The log level of `BootstrapParams` from which on debugging is logged.
const DEBUG: i32 = -4;

impl Call {
    /// Reads the standard input of `start`.
    ///
    /// Any message can be read as any other. containerd's own shims take `BootstrapParams` for such if
    /// they are about the container that the flags name, too.
    pub(crate) fn parse(input: &[u8], namespace: &str, id: &str) -> Self {
        match BootstrapParams::decode(input) {
            Ok(params) if params.instance_id == id && params.namespace == namespace => {
                Self::Bootstrap(Box::new(params))
            }
            _ => Self::Plain(options(input)),
        }
    }

    /// The options of runc, if there are such.
    pub(crate) fn runc_options(&self) -> Option<RuncOptions> {
        match self {
            Self::Bootstrap(params) => {
                let mut values = params.extensions.iter().filter_map(|one| one.value.as_ref());
                values.find_map(runc_options)
            }
            Self::Plain(options) => options.as_ref().and_then(runc_options),
        }
    }

    /// The directory for sockets that containerd names.
    pub(crate) fn socket_dir(&self) -> Option<PathBuf> {
        let Self::Bootstrap(params) = self else { return None };
        params.socket_dir.as_ref().filter(|dir| !dir.is_empty()).map(PathBuf::from)
    }

    /// Where containerd takes events, if it does not say that in `TTRPC_ADDRESS`.
    pub(crate) fn ttrpc_address(&self) -> Option<&str> {
        let Self::Bootstrap(params) = self else { return None };
        Some(params.containerd_ttrpc_address.as_str()).filter(|address| !address.is_empty())
    }

    /// Whether containerd logs at the level of debugging.
    pub(crate) fn debug(&self) -> bool {
        matches!(self, Self::Bootstrap(params) if params.log_level <= DEBUG)
    }

    /// The answer: a front is at this address, and passes on so new a version of the Task service.
    ///
    /// Early releases of 2.3 trim white space from an answer before they read it. A result neither begins
    /// nor ends with a byte that is white space.
    pub(crate) fn answer(&self, address: &str, version: i32) -> Vec<u8> {
        match self {
            Self::Bootstrap(_) => BootstrapResult {
                version,
                address: address.to_owned(),
                protocol: "ttrpc".to_owned(),
                ..BootstrapResult::default()
            }
            .encode_to_vec(),
            Self::Plain(_) => address.as_bytes().to_vec(),
        }
    }
}

/// The options of a runtime, from the standard input.
pub(crate) fn options(input: &[u8]) -> Option<Any> {
    Any::decode(input).ok().filter(|any| !any.type_url.is_empty())
}

/// The options of runc, if these are such.
pub(crate) fn runc_options(any: &Any) -> Option<RuncOptions> {
    let value = any.value.as_slice();
    match any.type_name() {
        RuncOptions::TYPE => RuncOptions::decode(value).ok(),
        LinuxCreateOptions::TYPE => LinuxCreateOptions::decode(value).ok().map(RuncOptions::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `Any{"containerd.runc.v1.Options", {shim_cgroup: "/pod", systemd_cgroup: true}}`
    const OPTIONS: &[u8] = b"\x0a\x1acontainerd.runc.v1.Options\x12\x08\x1a\x04/podH\x01";

    /// As 2.3 sends them for container `web` in `k8s.io`, with the options above.
    fn bootstrap() -> Vec<u8> {
        let mut bytes = b"\x0a\x03web\x12\x06k8s.io\x18".to_vec();
        // -4 has ten bytes as a varint.
        bytes.extend_from_slice(b"\xfc\xff\xff\xff\xff\xff\xff\xff\xff\x01");
        bytes.extend_from_slice(b"\x22\x052.3.4\x2a\x07/t.sock\x32\x07/g.sock\x3a\x0acontainerd");
        bytes.extend_from_slice(b"\x42\x28\x0a\x26");
        bytes.extend_from_slice(OPTIONS);
        bytes.extend_from_slice(b"\x4a\x06/run/s");
        bytes
    }

    #[test]
    fn releases_before_2_3_get_a_plain_address() {
        let call = Call::parse(OPTIONS, "k8s.io", "web");
        assert!(matches!(&call, Call::Plain(Some(_))), "{call:?}");
        assert_eq!(call.runc_options().unwrap().shim_cgroup, "/pod");
        assert_eq!(call.answer("unix:///run/s/x", 3), b"unix:///run/s/x");
        assert_eq!((call.socket_dir(), call.ttrpc_address(), call.debug()), (None, None, false));
        // Without options there is no input.
        let call = Call::parse(b"", "k8s.io", "web");
        assert_eq!((&call, call.runc_options()), (&Call::Plain(None), None));
    }

    #[test]
    fn release_2_3_gets_a_result_that_may_be_trimmed() {
        let call = Call::parse(&bootstrap(), "k8s.io", "web");
        assert!(matches!(&call, Call::Bootstrap(_)), "{call:?}");
        assert_eq!(call.runc_options().unwrap().shim_cgroup, "/pod");
        assert_eq!(call.socket_dir(), Some("/run/s".into()));
        assert_eq!((call.ttrpc_address(), call.debug()), (Some("/t.sock"), true));
        let answer = call.answer("unix:///run/s/x", 3);
        assert_eq!(answer, b"\x08\x03\x12\x0funix:///run/s/x\x1a\x05ttrpc");
        let white = |byte: &u8| byte.is_ascii_whitespace() || [0x0b, 0x85, 0xa0].contains(byte);
        assert!(!answer.first().is_some_and(white) && !answer.last().is_some_and(white));
    }

    #[test]
    fn params_about_another_container_are_none() {
        assert!(matches!(Call::parse(&bootstrap(), "k8s.io", "other"), Call::Plain(_)));
        assert!(matches!(Call::parse(&bootstrap(), "other", "web"), Call::Plain(_)));
    }

    #[test]
    fn containerds_client_library_has_a_type_of_its_own_for_other_names_than_runcs() {
        let options =
            LinuxCreateOptions { shim_cgroup: "/pod".to_owned(), ..LinuxCreateOptions::default() };
        let any = Any::of(LinuxCreateOptions::TYPE, &options);
        let call = Call::parse(&any.encode_to_vec(), "n", "a");
        assert_eq!(call.runc_options().unwrap().shim_cgroup, "/pod");
    }

    #[test]
    fn options_of_other_runtimes_are_no_options_of_runc() {
        let any = Any { type_url: "runtimeoptions.v1.Options".to_owned(), value: b"\x0a".to_vec() };
        assert_eq!(Call::parse(&any.encode_to_vec(), "n", "a").runc_options(), None);
    }
}
