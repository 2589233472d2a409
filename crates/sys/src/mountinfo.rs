//! Mounts as `/proc/PID/mountinfo` lists them; see proc_pid_mountinfo(5).

use std::path::PathBuf;
use std::{fs, io};

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its number.
    pub id: u64,
    /// The numbers of its file system.
    pub device: String,
    /// What of the file system it shows.
    pub root: PathBuf,
    /// Where it is mounted.
    pub point: PathBuf,
    /// The group of peers that it is in.
    pub shared: Option<u64>,
    /// The group that it is a slave of.
    pub master: Option<u64>,
    /// The type of the file system.
    pub kind: String,
    /// The options of the file system, separated by commas.
    pub options: String,
}

/// Returns the mounts that a process sees, `self` or a number, the oldest first.
pub fn of(process: &str) -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read_to_string(format!("/proc/{process}/mountinfo"))?))
}

/// Returns the mounts of such a file.
pub fn parse(text: &str) -> Vec<Mount> {
    text.lines().filter_map(Mount::parse).collect()
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        // The type comes after a separator, as there are optional fields.
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ');
        let id = fields.next()?.parse().ok()?;
        let device = fields.nth(1)?.to_owned();
        let (root, point) = (unescape(fields.next()?).into(), unescape(fields.next()?).into());
        let optional: Vec<&str> = fields.skip(1).collect();
        let group = |name: &str| {
            optional.iter().find_map(|field| field.strip_prefix(name)?.parse::<u64>().ok())
        };
        let mut kind = kind.split(' ').map(unescape);
        Some(Self {
            id,
            device,
            root,
            point,
            shared: group("shared:"),
            master: group("master:"),
            kind: kind.next().unwrap_or_default(),
            // Between them is the source.
            options: kind.nth(1).unwrap_or_default(),
        })
    }

    /// Returns the controllers of a cgroup hierarchy, as cgroups(7) has them: none for version 2. `None` for
    /// another file system.
    pub fn controllers(&self) -> Option<Vec<&str>> {
        match self.kind.as_str() {
            "cgroup2" => Some(Vec::new()),
            "cgroup" => Some(self.options.split(',').collect()),
            _ => None,
        }
    }
}

/// Blanks and their like stand there as `\040`.
fn unescape(field: &str) -> String {
    let mut parts = field.split('\\');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|code| u8::from_str_radix(code, 8).ok());
        match code {
            Some(code) if code.is_ascii() => {
                text.push(code.into());
                text.push_str(&part[3..]);
            }
            _ => {
                text.push('\\');
                text.push_str(part);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_among_optional_fields() {
        let line = "36 35 98:0 /mnt1 /a\\040b rw,noatime shared:22 master:21 - ext3 /dev/root rw";
        let expected = Mount {
            id: 36,
            device: "98:0".to_owned(),
            root: "/mnt1".into(),
            point: "/a b".into(),
            shared: Some(22),
            master: Some(21),
            kind: "ext3".to_owned(),
            options: "rw".to_owned(),
        };
        assert_eq!(Mount::parse(line), Some(expected));
        let private = Mount::parse("36 35 98:0 / / rw - ext3 /dev/root rw").expect("a mount");
        assert_eq!((private.shared, private.master), (None, None));
        assert_eq!(Mount::parse("nonsense"), None);
    }

    #[test]
    fn hierarchies_are_told_from_other_file_systems() {
        let text = "1 2 0:1 / /cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                    2 2 0:2 / /unified rw - cgroup2 cgroup2 rw\n\
                    3 2 0:3 / / rw - tmpfs tmpfs rw,cpu\n";
        let mounts = parse(text);
        let controllers: Vec<_> = mounts.iter().map(Mount::controllers).collect();
        assert_eq!(controllers, [Some(vec!["rw", "cpu", "cpuacct"]), Some(vec![]), None]);
    }

    #[test]
    fn a_path_is_read_back_with_blanks_and_backslashes() {
        assert_eq!(unescape(r"/a\040b\134c\x"), r"/a b\c\x");
    }
}
