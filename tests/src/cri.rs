//! A small client of containerd's CRI plugin: pods, as the kubelet starts and stops them.

mod grpc;
mod messages;

use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::Message;

pub use grpc::Refused;
use messages as m;

use crate::containerd::{IMAGE, SHARE, text};
use crate::soon;

/// The directory of a pod's logs, below that of the test.
const LOGS: &str = "logs";
/// Long enough for a test, in seconds.
const EXEC_TIMEOUT: i64 = 60;

/// A client of one containerd. Every call has a connection of its own.
#[derive(Debug, Clone)]
pub struct Cri {
    socket: PathBuf,
    directory: PathBuf,
    handler: &'static str,
    cgroup: String,
}

/// A pod that was started.
#[derive(Debug, Clone)]
pub struct Pod {
    /// The name that containerd gave it.
    pub id: String,
    config: m::PodSandboxConfig,
}

/// What a container is created with.
#[derive(Debug, Clone)]
pub struct Template<'a> {
    /// Its name in the pod.
    pub name: &'a str,
    /// How many containers of this name the pod had before.
    pub attempt: u32,
    /// A shell's script.
    pub script: &'a str,
    /// The limit of its memory in bytes; 0 is none.
    pub memory: i64,
}

/// The state of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ContainerState {
    /// It was not started.
    Created = 0,
    /// It runs.
    Running = 1,
    /// It has ended.
    Exited = 2,
    /// containerd does not know.
    Unknown = 3,
}

/// The state of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum PodState {
    /// Its first container runs.
    Ready = 0,
    /// It was stopped, or its first container has ended.
    NotReady = 1,
}

/// The status of a container.
#[derive(Clone, PartialEq, Message)]
pub struct ContainerStatus {
    /// Whether it runs.
    #[prost(enumeration = "ContainerState", tag = "3")]
    pub state: i32,
    /// When it was started, in nanoseconds since 1970.
    #[prost(int64, tag = "5")]
    pub started_at: i64,
    /// When it ended, in nanoseconds since 1970.
    #[prost(int64, tag = "6")]
    pub finished_at: i64,
    /// The exit code of its first process.
    #[prost(int32, tag = "7")]
    pub exit_code: i32,
    /// Why it is in this state, in one word.
    #[prost(string, tag = "10")]
    pub reason: String,
}

/// What a command in a container came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executed {
    /// Its exit code.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// What a container uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Processor time since it was started, in nanoseconds.
    pub processor: u64,
    /// Memory that can't be reclaimed easily, in bytes.
    pub memory: u64,
}

impl Template<'_> {
    /// The log file's name in the directory of the pod's logs.
    fn log(&self) -> String {
        format!("{}-{}.log", self.name, self.attempt)
    }
}

impl Cri {
    pub(crate) fn new(
        socket: &Path,
        directory: &Path,
        handler: &'static str,
        cgroup: &str,
    ) -> Self {
        Self {
            socket: socket.to_owned(),
            directory: directory.to_owned(),
            handler,
            cgroup: cgroup.to_owned(),
        }
    }

    async fn call<R: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
    ) -> Result<R, Refused> {
        let method = format!("/runtime.v1.RuntimeService/{method}");
        soon(&method, grpc::call(&self.socket, &method, request)).await
    }

    async fn about<R: Message + Default>(&self, method: &str, id: &str) -> Result<R, Refused> {
        self.call(method, &m::Named { id: id.to_owned() }).await
    }

    /// Waits until the plugin has read its state. containerd refuses calls before that, and nothing
    /// tells when it does no longer.
    pub async fn ready(&self) {
        soon("the CRI plugin", async {
            while self.pods().await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }

    /// Starts a pod in the host's network.
    ///
    /// # Errors
    ///
    /// If containerd refuses.
    pub async fn run_pod(&self, name: &str) -> Result<Pod, Refused> {
        let config = m::PodSandboxConfig {
            metadata: Some(m::PodSandboxMetadata {
                name: name.to_owned(),
                uid: name.to_owned(),
                namespace: "default".to_owned(),
            }),
            log_directory: text(&self.directory.join(LOGS).join(name)).to_owned(),
            linux: Some(m::LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}", self.cgroup),
                security_context: Some(m::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces()),
                }),
            }),
        };
        let request = m::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: self.handler.to_owned(),
        };
        let started: m::Named = self.call("RunPodSandbox", &request).await?;
        Ok(Pod { id: started.id, config })
    }

    /// Creates a container of a shell's script and returns its id.
    ///
    /// # Errors
    ///
    /// If containerd refuses.
    pub async fn create(&self, pod: &Pod, of: &Template<'_>) -> Result<String, Refused> {
        self.create_of(pod, of, &["sh", "-c", of.script]).await
    }

    /// Creates a container of a command instead and returns its id.
    ///
    /// # Errors
    ///
    /// If containerd refuses.
    pub async fn create_of(
        &self,
        pod: &Pod,
        of: &Template<'_>,
        command: &[&str],
    ) -> Result<String, Refused> {
        let linux = m::LinuxContainerConfig {
            resources: Some(m::LinuxContainerResources { memory_limit_in_bytes: of.memory }),
            security_context: Some(m::LinuxContainerSecurityContext {
                namespace_options: Some(namespaces()),
            }),
        };
        let share = m::Mount {
            container_path: SHARE.to_owned(),
            host_path: text(&self.directory.join("share")).to_owned(),
        };
        let config = m::ContainerConfig {
            metadata: Some(m::ContainerMetadata { name: of.name.to_owned(), attempt: of.attempt }),
            image: Some(m::ImageSpec { image: IMAGE.to_owned() }),
            command: command.iter().map(|&part| part.to_owned()).collect(),
            mounts: vec![share],
            log_path: of.log(),
            linux: Some(linux),
        };
        let request = m::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let created: m::Named = self.call("CreateContainer", &request).await?;
        Ok(created.id)
    }

    /// Starts a container.
    ///
    /// # Errors
    ///
    /// If containerd refuses.
    pub async fn start(&self, id: &str) -> Result<(), Refused> {
        self.about::<m::Empty>("StartContainer", id).await.map(drop)
    }

    /// Stops a container: SIGTERM, and SIGKILL after a grace in seconds.
    ///
    /// # Errors
    ///
    /// If containerd refuses.
    pub async fn stop(&self, id: &str, grace: i64) -> Result<(), Refused> {
        let request = m::StopContainerRequest { container_id: id.to_owned(), timeout: grace };
        self.call::<m::Empty>("StopContainer", &request).await.map(drop)
    }

    /// Removes a container.
    ///
    /// # Errors
    ///
    /// If containerd refuses.
    pub async fn remove(&self, id: &str) -> Result<(), Refused> {
        self.about::<m::Empty>("RemoveContainer", id).await.map(drop)
    }

    /// Stops a pod and its containers.
    ///
    /// # Errors
    ///
    /// If containerd refuses.
    pub async fn stop_pod(&self, pod: &Pod) -> Result<(), Refused> {
        self.about::<m::Empty>("StopPodSandbox", &pod.id).await.map(drop)
    }

    /// Removes a pod and its containers.
    ///
    /// # Errors
    ///
    /// If containerd refuses.
    pub async fn remove_pod(&self, pod: &Pod) -> Result<(), Refused> {
        self.about::<m::Empty>("RemovePodSandbox", &pod.id).await.map(drop)
    }

    /// The status of a container.
    ///
    /// # Errors
    ///
    /// If containerd refuses.
    pub async fn status(&self, id: &str) -> Result<ContainerStatus, Refused> {
        let answer: m::ContainerStatusResponse = self.about("ContainerStatus", id).await?;
        Ok(answer.status.unwrap_or_default())
    }

    /// Waits until a container has ended, and returns its status. Nothing tells of it, so this looks
    /// again and again, as the kubelet does.
    ///
    /// # Panics
    ///
    /// If containerd refuses.
    pub async fn ended(&self, id: &str) -> ContainerStatus {
        soon(&format!("the end of {id}"), async {
            loop {
                let status = self.status(id).await.expect("the status of a container");
                if status.state() == ContainerState::Exited {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
    }

    /// The state of a pod.
    ///
    /// # Errors
    ///
    /// If containerd refuses.
    pub async fn pod_state(&self, pod: &Pod) -> Result<PodState, Refused> {
        let answer: m::PodSandboxStatusResponse = self.about("PodSandboxStatus", &pod.id).await?;
        Ok(answer.status.unwrap_or_default().state())
    }

    /// The containers of a pod and their states.
    ///
    /// # Errors
    ///
    /// If containerd refuses.
    pub async fn containers(&self, pod: &Pod) -> Result<Vec<(String, ContainerState)>, Refused> {
        let all: m::ListContainersResponse =
            self.call("ListContainers", &m::Empty::default()).await?;
        let of_pod = all.containers.into_iter().filter(|one| one.pod_sandbox_id == pod.id);
        Ok(of_pod.map(|one| (one.id.clone(), one.state())).collect())
    }

    /// The ids of all pods.
    ///
    /// # Errors
    ///
    /// If containerd refuses.
    pub async fn pods(&self) -> Result<Vec<String>, Refused> {
        let all: m::ListPodSandboxResponse =
            self.call("ListPodSandbox", &m::Empty::default()).await?;
        Ok(all.items.into_iter().map(|one| one.id).collect())
    }

    /// Runs a shell's script in a container.
    ///
    /// # Errors
    ///
    /// If containerd refuses.
    pub async fn exec(&self, id: &str, script: &str) -> Result<Executed, Refused> {
        self.exec_within(id, script, EXEC_TIMEOUT).await
    }

    /// The same, with a limit in seconds.
    ///
    /// # Errors
    ///
    /// If containerd refuses, or if the limit is over.
    ///
    /// # Panics
    ///
    /// If the output is not UTF-8.
    pub async fn exec_within(
        &self,
        id: &str,
        script: &str,
        timeout: i64,
    ) -> Result<Executed, Refused> {
        let request = m::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
            timeout,
        };
        let answer: m::ExecSyncResponse = self.call("ExecSync", &request).await?;
        let text = |bytes| String::from_utf8(bytes).expect("output in UTF-8");
        Ok(Executed {
            code: answer.exit_code,
            stdout: text(answer.stdout),
            stderr: text(answer.stderr),
        })
    }

    /// What a container uses.
    ///
    /// # Errors
    ///
    /// If containerd refuses.
    pub async fn stats(&self, id: &str) -> Result<Stats, Refused> {
        let answer: m::ContainerStatsResponse = self.about("ContainerStats", id).await?;
        let stats = answer.stats.unwrap_or_default();
        let processor = stats.cpu.unwrap_or_default().usage_core_nano_seconds;
        let memory = stats.memory.unwrap_or_default().working_set_bytes;
        Ok(Stats {
            processor: processor.unwrap_or_default().value,
            memory: memory.unwrap_or_default().value,
        })
    }

    /// The lines that a container wrote, of one stream, from its log file.
    ///
    /// # Panics
    ///
    /// If the file is not in the format of CRI, whose lines have a time, a stream, a tag (`F` for a full
    /// line, `P` for a part) and the content.
    #[must_use]
    pub fn log(&self, pod: &Pod, of: &Template<'_>, stream: &str) -> String {
        let path = Path::new(&pod.config.log_directory).join(of.log());
        let file = std::fs::read_to_string(&path).unwrap_or_default();
        let mut content = String::new();
        // The last line may be under way: containerd writes it in parts.
        for line in file.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let mut fields = line.splitn(4, ' ').skip(1);
            let (Some(found), Some(tag), Some(text)) =
                (fields.next(), fields.next(), fields.next())
            else {
                panic!("a line of a log of CRI: {line:?}");
            };
            if found == stream {
                content.push_str(text);
                content.push_str(if tag == "P" { "" } else { "\n" });
            }
        }
        content
    }
}

/// The host's network, which needs no plugin; the rest is as in a pod of Kubernetes.
fn namespaces() -> m::NamespaceOption {
    let (network, pid) = (m::NamespaceMode::Node, m::NamespaceMode::Container);
    m::NamespaceOption { network: network.into(), pid: pid.into() }
}
