//! `-info`: describes the runtime. The CRI plugin asks, to learn what the OCI runtime can do.

use std::process::{Command, Stdio};

use holdfast_ttrpc::Message;
use holdfast_ttrpc::types::{Any, RuntimeInfo, RuntimeVersion};
use serde::de::IgnoredAny;

use crate::dialect;

/// The runtime's name.
const NAME: &str = "io.containerd.holdfast.v2";
/// The type of what an OCI runtime says of itself.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
/// The OCI runtime, unless the options name another.
const RUNTIME: &str = "runc";

/// Returns what containerd reads, for the options that it gave.
pub(crate) fn info(input: &[u8]) -> Vec<u8> {
    let options = dialect::options(input);
    let named = options.as_ref().and_then(dialect::runc_options).map(|options| options.binary_name);
    let runtime = named.filter(|name| !name.is_empty()).unwrap_or_else(|| RUNTIME.to_owned());
    let version =
        RuntimeVersion { version: env!("CARGO_PKG_VERSION").to_owned(), revision: String::new() };
    RuntimeInfo {
        name: NAME.to_owned(),
        version: Some(version),
        options,
        features: features(&runtime),
        ..RuntimeInfo::default()
    }
    .encode_to_vec()
}

/// What the OCI runtime can do. Not every one says it.
fn features(runtime: &str) -> Option<Any> {
    let mut command = Command::new(runtime);
    let output =
        command.arg("features").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let sound =
        output.status.success() && serde_json::from_slice::<IgnoredAny>(&output.stdout).is_ok();
    sound.then(|| Any { type_url: FEATURES.to_owned(), value: output.stdout })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_without_features_has_none_and_the_options_come_back() {
        let options = Any {
            type_url: "containerd.runc.v1.Options".to_owned(),
            // binary_name
            value: b"\x32\x09/bin/true".to_vec(),
        };
        let info = RuntimeInfo::decode(info(&options.encode_to_vec()).as_slice()).unwrap();
        assert_eq!((info.name.as_str(), info.features), (NAME, None));
        assert_eq!(info.options, Some(options));
    }
}
