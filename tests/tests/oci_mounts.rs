//! Mounts as the OCI runtime specification has them, seen in the container, by the embedded runtime and by
//! runc beside it. docs/oci-runtime.md has the table.
//!
//! At revision 8c80469 the embedded runtime failed all of these: it refused `rshared`, `rslave` and
//! `rprivate` as propagation of the root, dropped the propagation of other mounts, `sync` and
//! `nosymfollow` in silence, refused `tmpcopyup` by the word "syscall", and left a read-only /dev writable.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::process::{Child, Command, Stdio};

use holdfast_tests::oci::{both, embedded, mounts};
use serde_json::{Value, json};

fn mount(config: &mut Value, to: &str, kind: &str, from: &str, options: &[&str]) {
    let mount = json!({ "destination": to, "type": kind, "source": from, "options": options });
    config["mounts"].as_array_mut().expect("an array").push(mount);
}

/// A mount namespace that stands for the host's, where all is shared as with systemd, with a volume.
struct Host(Child);

impl Host {
    fn with_volume(volume: &std::path::Path) -> Self {
        let script = "mount --make-rshared / && mount -t tmpfs volume \"$1\" && mkdir \"$1/sub\" && \
                      echo ready && read -r _";
        let mut process = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
            .arg(volume)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("make a mount namespace");
        let mut lines = BufReader::new(process.stdout.take().expect("a pipe")).lines();
        assert_eq!(lines.next().expect("a line").expect("text"), "ready");
        Self(process)
    }

    /// The groups in which its mounts are peers. It loses a mount, and its group's number is free for
    /// another, when somebody removes the directory of that mount.
    fn groups(&self) -> Vec<String> {
        let path = format!("/proc/{}/mountinfo", self.0.id());
        let all = mounts(&fs::read_to_string(path).expect("read the mounts"));
        let all = all.into_iter().map(|(_, _, fields)| fields);
        all.filter_map(|it| Some(it.strip_prefix("shared:")?.to_owned())).collect()
    }

    /// How a mount propagates, in words.
    fn in_words(&self, fields: &str) -> String {
        let groups = self.groups();
        let words = fields.split(' ').map(|field| match field.split_once(':') {
            Some(("shared", group)) if groups.iter().any(|it| it == group) => "peer",
            Some(("shared", _)) => "own",
            Some(("master", _)) => "slave",
            _ if field == "unbindable" => field,
            _ => "private",
        });
        words.collect::<Vec<_>>().join("+")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The mounts of the container, and how each propagates with a `rootfsPropagation`: by the embedded runtime
/// and, where that is another, by runc 1.1.
const POINTS: [&str; 6] = ["/", "/none", "/rshared", "/rslave", "/rprivate", "/unbindable"];
type Row = (&'static str, [&'static str; 6], &'static [(usize, &'static str)]);
const PROPAGATION: [Row; 8] = [
    ("", ["slave", "slave", "own+slave", "slave", "private", "unbindable"], &[]),
    ("rslave", ["slave", "slave", "own+slave", "slave", "private", "unbindable"], &[]),
    ("slave", ["slave", "slave", "peer", "slave", "private", "unbindable"], &[(1, "peer")]),
    ("shared", ["own", "peer", "peer", "slave", "private", "unbindable"], &[(0, "private")]),
    ("rshared", ["own", "peer", "peer", "slave", "private", "unbindable"], &[(0, "private")]),
    ("private", ["private", "slave", "peer", "slave", "private", "unbindable"], &[(1, "peer")]),
    ("rprivate", ["private", "private", "own", "private", "private", "unbindable"], &[]),
    ("unbindable", ["unbindable", "slave", "peer", "slave", "private", "unbindable"], &[]),
];

#[test]
fn mounts_propagate_as_the_configuration_says() {
    for oci in both() {
        let volume = oci.path().join("volume");
        fs::create_dir(&volume).expect("make a directory");
        let host = Host::with_volume(&volume);
        let oci = oci.seen_by(host.0.id());
        let volume = volume.to_str().expect("UTF-8");
        for (form, expected, of_runc) in PROPAGATION {
            let made = oci.run("cat /proc/self/mountinfo", |config| {
                config["linux"]["rootfsPropagation"] = json!(form);
                for point in &POINTS[1..] {
                    let option = point[1..].to_owned();
                    let option = Some(option.as_str()).filter(|option| *option != "none");
                    let options: Vec<&str> = ["rbind"].into_iter().chain(option).collect();
                    mount(config, point, "bind", volume, &options);
                }
            });
            if oci.is_runc() && form == "unbindable" {
                // Its own mount of the root fails by it.
                assert!(made.reason().contains("invalid argument"));
                continue;
            }
            let said = made.said();
            let found: HashMap<String, String> =
                mounts(&said).into_iter().map(|(point, _, fields)| (point, fields)).collect();
            let found = POINTS.map(|point| host.in_words(&found[point]));
            let mut expected = expected;
            for (place, word) in of_runc.iter().filter(|_| oci.is_runc()) {
                expected[*place] = word;
            }
            assert_eq!(found, expected, "{form}, {oci:?}");
        }
        for form in ["runbindable", "nonsense"] {
            let made = oci.run("true", |config| {
                config["linux"]["rootfsPropagation"] = json!(form);
            });
            let reason = made.reason();
            let named = reason.contains(&format!("rootfsPropagation={form} is not supported"));
            assert!(named || oci.is_runc(), "{reason}");
        }
    }
}

#[test]
fn what_is_mounted_while_a_container_is_made_is_not_seen_on_the_host() {
    for oci in both() {
        let volume = oci.path().join("volume");
        fs::create_dir(&volume).expect("make a directory");
        let host = Host::with_volume(&volume);
        let oci = oci.seen_by(host.0.id());
        let mountinfo =
            || fs::read_to_string(format!("/proc/{}/mountinfo", host.0.id())).expect("read it");
        let before = mountinfo();
        let made = oci.run("grep -c /data/sub /proc/self/mountinfo", |config| {
            config["linux"]["rootfsPropagation"] = json!("shared");
            let volume = volume.to_str().expect("UTF-8");
            mount(config, "/data", "bind", volume, &["rbind", "rprivate"]);
            mount(config, "/data/sub", "tmpfs", "tmpfs", &[]);
        });
        assert_eq!(made.said().trim(), "1");
        assert_eq!(mountinfo(), before, "{oci:?}");
    }
}

/// Fills a directory of a root file system, and says what is to be seen of it in a container.
fn fill(dir: &std::path::Path) -> &'static str {
    fs::create_dir_all(dir.join("below/deep")).expect("make directories");
    fs::write(dir.join("file"), "text").expect("write a file");
    chown(dir.join("file"), Some(7), Some(8)).expect("change an owner");
    let mode = |name: &str, mode: u32| {
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode))
            .expect("change a mode");
    };
    mode("file", 0o4755);
    mode("below", 0o1750);
    mode("", 0o751);
    symlink("/etc/passwd", dir.join("link")).expect("make a link");
    "751 0:0 .\n1750 0:0 ./below\n755 0:0 ./below/deep\n4755 7:8 ./file\n777 0:0 ./link\ntext\n/etc/passwd\n"
}

const LIST: &str = "cd /copied; find . ! -name nested | sort | while read -r f; do stat -c '%a %u:%g %n' \
                    \"$f\"; done; cat file; echo; readlink link";

#[test]
fn a_tmpfs_with_tmpcopyup_begins_with_what_it_covers() {
    for oci in both() {
        let expected = fill(&oci.rootfs().join("copied"));
        // A file of the host's, mounted into the tmpfs, is not written to.
        let nested = oci.path().join("nested");
        fs::write(&nested, "of the host").expect("write a file");
        fs::write(oci.rootfs().join("copied/nested"), "of the image").expect("write a file");
        for options in [&["tmpcopyup", "size=1m"][..], &["tmpcopyup", "ro"]] {
            let said = oci
                .run(&format!("{LIST}; cat nested; echo; touch new && ls new"), |config| {
                    mount(config, "/copied", "tmpfs", "tmpfs", options);
                    let nested = nested.to_str().expect("UTF-8");
                    mount(config, "/copied/nested", "bind", nested, &["bind"]);
                })
                .said();
            let written = if options.contains(&"ro") { "touch: new: Read-only" } else { "new" };
            let expected = format!("{expected}of the host\n{written}");
            assert!(said.starts_with(&expected), "{options:?}, {oci:?}: {said}");
        }
        assert_eq!(fs::read_to_string(&nested).expect("read it"), "of the host");
        assert!(!oci.rootfs().join("copied/new").exists());
        let made = oci.run("true", |config| {
            mount(config, "/copied", "tmpfs", "tmpfs", &["tmpcopyup", "size=4k"]);
        });
        let reason = made.reason();
        assert!(reason.contains("/copied") && reason.contains("tmpcopyup"), "{reason}");
        assert!(reason.to_lowercase().contains("no space left on device"), "{reason}");
    }
}

#[test]
fn tmpcopyup_follows_no_link_out_of_the_root() {
    for oci in both() {
        let rootfs = oci.rootfs();
        fs::create_dir_all(rootfs.join("etc")).expect("make a directory");
        fs::write(rootfs.join("etc/mark"), "of the image").expect("write a file");
        symlink("/../../../../../../../etc", rootfs.join("escape")).expect("make a link");
        let made = oci.run("cat /etc/mark; ls /etc | wc -l", |config| {
            mount(config, "/escape", "tmpfs", "tmpfs", &["tmpcopyup"]);
        });
        // Both resolve the link in the root; the copy has the image's file and nothing of the host.
        assert_eq!(made.said(), "of the image1\n", "{oci:?}");
    }
}

#[test]
fn a_tmpfs_has_the_mode_of_what_it_covers_unless_it_says_another() {
    for oci in both() {
        fs::create_dir(oci.rootfs().join("covered")).expect("make a directory");
        let closed = fs::Permissions::from_mode(0o710);
        fs::set_permissions(oci.rootfs().join("covered"), closed).expect("change a mode");
        // runc 1.1 has the directory's mode win; later ones, the option.
        let own = if oci.is_runc() { "710" } else { "705" };
        for (options, mode) in [(&[][..], "710"), (&["mode=705"], own)] {
            let made = oci.run("stat -c %a /covered", |config| {
                mount(config, "/covered", "tmpfs", "tmpfs", options);
            });
            assert_eq!(made.said().trim(), mode, "{options:?}, {oci:?}");
        }
    }
}

#[test]
fn flags_of_mounts_are_applied_to_one_or_to_all_below() {
    for oci in both() {
        let said = oci
            .run("cat /proc/self/mountinfo; touch /dev/x; echo fine > /dev/null", |config| {
                mount(config, "/all", "bind", "/dev", &["rbind", "rro", "rnosuid", "rnoexec"]);
                mount(config, "/times", "bind", "/dev", &["rbind", "rnoatime", "rnodev"]);
                mount(config, "/one", "bind", "/dev", &["rbind", "nosymfollow"]);
                mount(config, "/sync", "tmpfs", "tmpfs", &["sync", "nosymfollow"]);
                let all = config["mounts"].as_array_mut().expect("an array");
                let dev = all.iter_mut().find(|it| it["destination"] == "/dev");
                let options = dev.expect("it is there")["options"].as_array_mut();
                options.expect("an array").push(json!("ro"));
            })
            .said();
        let found = mounts(&said);
        let options_of = |point: &str| {
            let first = found.iter().find(|(it, ..)| it == point);
            first.map(|(_, options, _)| options.clone()).unwrap_or_default()
        };
        let has = |point: &str, options: &[&str]| {
            let found = options_of(point);
            let has = options.iter().all(|option| found.split(',').any(|it| it == *option));
            assert!(has, "{point}: {options:?} in {found}, {oci:?}");
        };
        for point in ["/all", "/all/pts"] {
            has(point, &["ro", "nosuid", "noexec"]);
        }
        for point in ["/times", "/times/pts"] {
            has(point, &["rw", "nodev", "noatime"]);
        }
        has("/one", &["nosymfollow"]);
        assert!(!options_of("/one/pts").contains("nosymfollow"), "{oci:?}");
        has("/sync", &["nosymfollow"]);
        assert!(said.lines().any(|line| line.contains(" /sync ") && line.contains("rw,sync")));
        assert!(said.contains("touch: /dev/x: Read-only file system"), "{said}");
    }
}

#[test]
fn the_owners_of_a_mounts_files_are_mapped() {
    // runc knows it since 1.2.
    let oci = embedded();
    let source = oci.path().join("mapped");
    fs::create_dir(&source).expect("make a directory");
    fs::write(source.join("file"), "").expect("write a file");
    chown(source.join("file"), Some(3), Some(4)).expect("change an owner");
    let entry = |host: u32| json!([{ "containerID": 0, "hostID": host, "size": 10 }]);
    let source = source.to_str().expect("UTF-8");
    let add = |config: &mut Value, options: &[&str], maps: &[(&str, u32)]| {
        mount(config, "/mapped", "bind", source, options);
        let all = config["mounts"].as_array_mut().expect("an array");
        for (field, host) in maps {
            all.last_mut().expect("it is there")[field] = entry(*host);
        }
    };
    let script = "stat -c %u:%g /mapped/file; grep -c ' /mapped .*idmapped' /proc/self/mountinfo";
    let maps = [("uidMappings", 1000), ("gidMappings", 2000)];
    for options in [&["bind"][..], &["rbind", "idmap"], &["rbind", "ridmap", "rslave"]] {
        let made = oci.run(script, |config| add(config, options, &maps));
        assert_eq!(made.said(), "1003:2004\n1\n", "{options:?}");
    }
    // The container's own mapping: on the host the file is of 3, and in the container too.
    let made = oci.run(script, |config| {
        add(config, &["bind", "idmap"], &[]);
        for path in [oci.path(), &oci.path().join("bundle"), &oci.rootfs()] {
            chown(path, Some(100_000), Some(100_000)).expect("change an owner");
        }
        let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
        config["linux"]["uidMappings"] = map.clone();
        config["linux"]["gidMappings"] = map;
        let namespaces = config["linux"]["namespaces"].as_array_mut().expect("an array");
        namespaces.push(json!({ "type": "user" }));
    });
    assert_eq!(made.said(), "3:4\n1\n");
    let made = oci.run("true", |config| add(config, &["bind"], &maps[..1]));
    let reason = made.reason();
    assert!(reason.contains("mount /mapped: gidMappings: missing"), "{reason}");
    let made = oci.run("true", |config| {
        mount(config, "/mapped", "tmpfs", "tmpfs", &["idmap"]);
    });
    assert!(made.reason().contains("mount /mapped: option \"idmap\": only a bind mount"));
}

#[test]
fn an_option_that_can_not_be_applied_is_named() {
    let oci = embedded();
    for (kind, options, named) in [
        ("bind", &["bind", "nonsense"][..], "option \"nonsense\""),
        ("bind", &["bind", "sync"], "option \"sync\""),
        ("bind", &["rbind", "tmpcopyup"], "option \"tmpcopyup\""),
        ("tmpfs", &["remount"], "option \"remount\""),
        ("tmpfs", &["mand"], "option \"mand\""),
        ("tmpfs", &["nonsense"], "option \"nonsense\": Invalid argument"),
        ("tmpfs", &["size=x"], "option \"size=x\": Invalid argument"),
        ("nonsense", &[], "type \"nonsense\": No such device"),
    ] {
        let made = oci.run("true", |config| mount(config, "/here", kind, "/etc", options));
        let reason = made.reason();
        assert!(reason.contains(&format!("mount /here: {named}")), "{reason}");
    }
    let made = oci.run("true", |config| mount(config, "/here", "bind", "/no/such", &["bind"]));
    let reason = made.reason();
    assert!(reason.contains("mount /here: source /no/such: No such file"), "{reason}");
}
