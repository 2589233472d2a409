//! Execs: containerd adds one, and starts it later. What was added is on disk meanwhile.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use holdfast_supervisor::ProcessId;
use holdfast_ttrpc::Message;
use holdfast_ttrpc::task::ExecProcessRequest;
use tokio::sync::watch;

/// An exec that was added.
#[derive(Debug)]
pub(crate) struct Exec {
    /// Its id in the library.
    pub(crate) process: ProcessId,
    /// What was asked for.
    pub(crate) request: ExecProcessRequest,
    /// Which request that was.
    pub(crate) identity: String,
    /// What has become of it.
    pub(crate) stage: watch::Sender<Stage>,
    /// One start at a time.
    pub(crate) start: tokio::sync::Mutex<()>,
}

/// What has become of an exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It was added.
    Added,
    /// It was started; the library knows the rest.
    Started,
    /// Its start failed.
    Failed,
    /// It was deleted.
    Deleted,
}

impl Exec {
    pub(crate) fn new(
        process: ProcessId,
        request: ExecProcessRequest,
        identity: String,
        stage: Stage,
    ) -> Self {
        let stage = watch::Sender::new(stage);
        Self { process, request, identity, stage, start: tokio::sync::Mutex::default() }
    }
}

/// The id that an exec has in the library: `init` is taken there, and no id of containerd's ends with `_`.
pub(crate) fn process_id(exec: &str) -> Result<ProcessId, holdfast_supervisor::InvalidId> {
    let id: ProcessId = exec.parse()?;
    if id.is_init() { format!("{exec}_").parse() } else { Ok(id) }
}

/// The id that containerd knows a process by.
pub(crate) fn exec_id(process: &ProcessId) -> &str {
    let id = process.as_str();
    id.strip_suffix('_').unwrap_or(id)
}

/// The execs of a namespace on disk: a directory for each container, a file for each exec.
#[derive(Debug)]
pub(crate) struct ExecFiles(PathBuf);

impl ExecFiles {
    pub(crate) fn at(directory: PathBuf) -> Self {
        Self(directory)
    }

    fn file(&self, container: &str, exec: &str) -> PathBuf {
        self.0.join(container).join(exec)
    }

    /// Stores an exec: a line with its identity, and the request.
    pub(crate) fn save(&self, identity: &str, request: &ExecProcessRequest) -> io::Result<()> {
        let directory = self.0.join(&request.id);
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let mut content = format!("{identity}\n").into_bytes();
        content.extend(request.encode_to_vec());
        // A name that no exec has: ids begin with a letter or a digit.
        let staged = directory.join(format!(".{}", request.exec_id));
        fs::write(&staged, content)?;
        fs::rename(staged, self.file(&request.id, &request.exec_id))
    }

    /// Forgets an exec.
    pub(crate) fn remove(&self, container: &str, exec: &str) {
        let _ = fs::remove_file(self.file(container, exec));
    }

    /// Forgets all execs of a container.
    pub(crate) fn remove_all(&self, container: &str) {
        let _ = fs::remove_dir_all(self.0.join(container));
    }

    /// The containers that have a directory, also an empty one.
    pub(crate) fn containers(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// All that is stored.
    pub(crate) fn load(&self) -> Vec<(String, ExecProcessRequest)> {
        let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
        let files = entries(&self.0).flat_map(|container| entries(&container.path()));
        let whole = files.filter(|file| !file.file_name().to_string_lossy().starts_with('.'));
        whole.filter_map(|file| parse(&fs::read(file.path()).ok()?)).collect()
    }
}

fn parse(content: &[u8]) -> Option<(String, ExecProcessRequest)> {
    let end = content.iter().position(|byte| *byte == b'\n')?;
    let identity = String::from_utf8(content[..end].to_vec()).ok()?;
    Some((identity, ExecProcessRequest::decode(&content[end + 1..]).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_the_init_process_is_no_execs() {
        for id in ["init", "a", "init.1"] {
            let process = process_id(id).unwrap();
            assert!(!process.is_init());
            assert_eq!(exec_id(&process), id);
        }
    }

    #[test]
    fn what_was_added_is_found_again() {
        let directory = std::env::temp_dir().join(format!("holdfast-execs-{}", std::process::id()));
        let files = ExecFiles::at(directory.clone());
        let (id, exec_id) = ("web".to_owned(), "one".to_owned());
        let request = ExecProcessRequest { id, exec_id, terminal: true, ..Default::default() };
        files.save("front:1:3", &request).unwrap();
        assert_eq!(files.load(), [("front:1:3".to_owned(), request)]);
        files.remove("web", "one");
        assert_eq!(files.load(), []);
        assert_eq!(
            files.containers(),
            ["web"],
            "the directory stays until the container is forgotten"
        );
        files.remove_all("web");
        assert_eq!(files.containers(), [""; 0]);
        fs::remove_dir_all(directory).unwrap();
    }
}
