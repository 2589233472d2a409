//! The options of a task: those of runc.v2, in each of the forms in which containerd hands them over.

use std::collections::BTreeMap;

use holdfast_ttrpc::Message;
use holdfast_ttrpc::types::{
    Any, CheckpointOptions, GenericOptions, LinuxCreateOptions, RuncOptions,
};
use serde::Deserialize;
use serde_json::Value;

use crate::failure::{Answer, invalid};

/// Reads them.
pub(crate) fn of(options: Option<&Any>) -> Answer<RuncOptions> {
    let Some(any) = options.filter(|any| !any.type_url.is_empty()) else {
        // What a client sends that has none.
        return Ok(RuncOptions::default());
    };
    match any.type_name() {
        RuncOptions::TYPE => decode(any),
        LinuxCreateOptions::TYPE => decode::<LinuxCreateOptions>(any).map(RuncOptions::from),
        GenericOptions::TYPE => of_generic(&decode(any)?),
        other => Err(invalid(format!("options of type {other:?} are not known"))),
    }
}

fn decode<M: Message + Default>(any: &Any) -> Answer<M> {
    M::decode(any.value.as_slice()).map_err(|error| invalid(format!("options: {error}")))
}

/// Reads those of a checkpoint.
pub(crate) fn of_checkpoint(options: Option<&Any>) -> Answer<CheckpointOptions> {
    let Some(any) = options.filter(|any| !any.type_url.is_empty()) else {
        return Ok(CheckpointOptions::default());
    };
    let mut read: CheckpointOptions = decode(any)?;
    match any.type_name() {
        CheckpointOptions::TYPE => {}
        // The same message, but for the order of its last two fields.
        CheckpointOptions::CLIENT_TYPE => std::mem::swap(&mut read.image_path, &mut read.work_path),
        other => return Err(invalid(format!("options of type {other:?} are not known"))),
    }
    Ok(read)
}

/// The table `options` of a runtime in containerd's configuration, with the names that runc.v2 has there.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Table {
    no_pivot_root: bool,
    no_new_keyring: bool,
    shim_cgroup: String,
    io_uid: u32,
    io_gid: u32,
    binary_name: String,
    root: String,
    systemd_cgroup: bool,
    criu_image_path: String,
    criu_work_path: String,
    /// What containerd does not know either is passed over, as it does.
    #[serde(flatten)]
    unknown: BTreeMap<String, toml::Value>,
}

fn of_generic(options: &GenericOptions) -> Answer<RuncOptions> {
    let (place, text) = match options.config_path.as_str() {
        "" => ("the options".to_owned(), options.config_body.clone()),
        path => match std::fs::read(path) {
            Ok(text) => (path.to_owned(), text),
            Err(error) => return Err(invalid(format!("options {path}: {error}"))),
        },
    };
    let text = String::from_utf8(text).map_err(|_| invalid(format!("{place}: not UTF-8")))?;
    let table: Table =
        toml::from_str(&text).map_err(|error| invalid(format!("{place}: {error}")))?;
    if !table.shim_cgroup.is_empty() {
        // The front is at work already, and has not read this.
        return Err(invalid(format!("{place}: ShimCgroup is not to be had in this form")));
    }
    for name in table.unknown.keys() {
        tracing::debug!(name, "an option that is not known");
    }
    Ok(RuncOptions {
        no_pivot_root: table.no_pivot_root,
        no_new_keyring: table.no_new_keyring,
        shim_cgroup: String::new(),
        io_uid: table.io_uid,
        io_gid: table.io_gid,
        binary_name: table.binary_name,
        root: table.root,
        systemd_cgroup: table.systemd_cgroup,
        criu_image_path: table.criu_image_path,
        criu_work_path: table.criu_work_path,
    })
}

/// Whether a container's cgroup is one of systemd's, in the form `SLICE:PREFIX:NAME`.
///
/// The kubelet's cgroup driver decides on the form. The option that says the same does not reach a runtime
/// of another name than runc.v2 with containerd 1.6.
pub(crate) fn is_of_systemd(config: &Value) -> bool {
    let path = config.pointer("/linux/cgroupsPath").and_then(Value::as_str).unwrap_or_default();
    let mut parts = path.split(':');
    parts.next().is_some_and(|slice| slice.ends_with(".slice")) && parts.count() == 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn generic(body: &str) -> Answer<RuncOptions> {
        let options = GenericOptions { config_body: body.into(), ..GenericOptions::default() };
        of(Some(&Any::of(GenericOptions::TYPE, &options)))
    }

    #[test]
    fn the_options_come_in_three_forms_and_mean_the_same() {
        let runc = RuncOptions { systemd_cgroup: true, ..RuncOptions::default() };
        assert_eq!(of(Some(&Any::of(RuncOptions::TYPE, &runc))).unwrap(), runc);
        // As containerd 1.7 and later marshal the table of their configuration.
        let table = "CriuPath = ''\nShimCgroup = ''\nSystemdCgroup = true\n";
        assert_eq!(generic(table).unwrap(), runc);
        let client = LinuxCreateOptions { no_pivot_root: true, ..LinuxCreateOptions::default() };
        let client = of(Some(&Any::of(LinuxCreateOptions::TYPE, &client))).unwrap();
        assert!(client.no_pivot_root);
        for none in [None, Some(&Any::default())] {
            assert_eq!(of(none).unwrap(), RuncOptions::default());
        }
    }

    #[test]
    fn a_checkpoint_is_written_where_it_is_wanted_in_both_forms() {
        let work = CheckpointOptions {
            work_path: "/a".into(),
            image_path: "/b".into(),
            ..Default::default()
        };
        let read = of_checkpoint(Some(&Any::of(CheckpointOptions::TYPE, &work))).unwrap();
        assert_eq!((read.work_path.as_str(), read.image_path.as_str()), ("/a", "/b"));
        let read = of_checkpoint(Some(&Any::of(CheckpointOptions::CLIENT_TYPE, &work))).unwrap();
        assert_eq!((read.work_path.as_str(), read.image_path.as_str()), ("/b", "/a"));
    }

    #[test]
    fn what_can_not_be_obeyed_or_read_is_refused() {
        for body in ["ShimCgroup = \"/x\"", "BinaryName = 1", "="] {
            assert!(generic(body).is_err(), "{body}");
        }
        assert!(of(Some(&Any { type_url: "x.Options".into(), value: vec![] })).is_err());
        let missing =
            GenericOptions { config_path: "/no/such/file".into(), ..GenericOptions::default() };
        let error = of(Some(&Any::of(GenericOptions::TYPE, &missing))).unwrap_err();
        assert!(error.message.contains("/no/such/file"), "{}", error.message);
    }

    #[test]
    fn a_cgroup_of_systemd_is_known_by_its_form() {
        for (path, expected) in [
            ("kubepods-besteffort.slice:cri-containerd:abc", true),
            ("/kubepods/besteffort/abc", false),
            ("/kubepods.slice/abc", false),
            ("a:b:c", false),
            ("", false),
        ] {
            let config = json!({ "linux": { "cgroupsPath": path } });
            assert_eq!(is_of_systemd(&config), expected, "{path}");
        }
        assert!(!is_of_systemd(&json!({})));
    }
}
