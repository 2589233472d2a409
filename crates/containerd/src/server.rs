//! The socket on which fronts call, and the namespaces that they call for.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use holdfast_supervisor::ContainerId;
use holdfast_ttrpc::frame::AGAIN;
use holdfast_ttrpc::front::{self, Hello};
use holdfast_ttrpc::rpc::{Code, Failure, Request, Response};
use holdfast_ttrpc::task::SERVICES;
use holdfast_ttrpc::{Frame, Frames, Item, Kind, Message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, timeout};

use crate::call::{self, Caller};
use crate::failure::{Answer, internal, invalid};
use crate::namespace::Namespace;

/// How long a supervisor without containers and fronts stays.
const IDLE: Duration = Duration::from_secs(5);

/// How long it stays with events that containerd does not take.
const UNTOLD: Duration = Duration::from_secs(600);

/// How many answers may wait for a front.
const ANSWERS: usize = 64;

/// All that one containerd has given to us.
#[derive(Debug)]
pub(crate) struct Server {
    directory: PathBuf,
    /// The soft limit of open files that containers get, if ours was raised.
    nofile: Option<u64>,
    /// The address at which containerd takes events: the last that a front has named.
    containerd: Arc<Mutex<String>>,
    namespaces: tokio::sync::Mutex<HashMap<String, Arc<Namespace>>>,
    connections: AtomicUsize,
    changed: Notify,
}

impl Server {
    /// Opens the namespaces that there are.
    pub(crate) async fn open(directory: &Path, address: &str, nofile: Option<u64>) -> Self {
        let stored = std::env::var("TTRPC_ADDRESS").ok();
        let containerd = stored.unwrap_or_else(|| format!("{address}.ttrpc"));
        let this = Self {
            directory: directory.to_owned(),
            nofile,
            containerd: Arc::new(Mutex::new(containerd)),
            namespaces: tokio::sync::Mutex::default(),
            connections: AtomicUsize::new(0),
            changed: Notify::new(),
        };
        let entries = fs::read_dir(directory.join("namespaces")).into_iter().flatten().flatten();
        for entry in entries {
            if let Some(name) = entry.file_name().to_str() {
                // The others are served all the same.
                if let Err(error) = this.namespace(name).await {
                    tracing::error!(name, "a namespace can't be served: {error:#}");
                }
            }
        }
        this
    }

    /// The namespace of this name, opened if it is not yet.
    pub(crate) async fn namespace(&self, name: &str) -> anyhow::Result<Arc<Namespace>> {
        let mut namespaces = self.namespaces.lock().await;
        if let Some(namespace) = namespaces.get(name) {
            return Ok(namespace.clone());
        }
        // It is the name of a directory, as an id is.
        anyhow::ensure!(name.parse::<ContainerId>().is_ok(), "{name:?} can't be a namespace");
        let containerd = self.containerd.clone();
        let opened = Namespace::open(&self.directory, name, containerd, self.nofile).await?;
        namespaces.insert(name.to_owned(), opened.clone());
        Ok(opened)
    }

    /// Serves all who connect.
    pub(crate) async fn accept(self: Arc<Self>, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    self.connections.fetch_add(1, Ordering::Relaxed);
                    let this = self.clone();
                    tokio::spawn(async move {
                        if let Err(error) = this.clone().serve(stream).await {
                            tracing::debug!(%error, "a connection has ended");
                        }
                        this.connections.fetch_sub(1, Ordering::Relaxed);
                        this.changed.notify_one();
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "no connection can be accepted");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Returns once nobody has needed us for a while, and whether all is done and told.
    pub(crate) async fn idle(&self) -> bool {
        let mut since = Instant::now();
        loop {
            let changed = timeout(IDLE, self.changed.notified()).await.is_ok();
            let connected = self.connections.load(Ordering::Relaxed) > 0;
            let (containers, untold) = self.work().await;
            if changed || connected || containers {
                since = Instant::now();
            } else if !untold || since.elapsed() > UNTOLD {
                return !untold;
            }
        }
    }

    /// Whether there are containers, and whether there are events that containerd has not taken yet.
    async fn work(&self) -> (bool, bool) {
        let namespaces = self.namespaces.lock().await;
        let containers = namespaces.values().any(|one| !one.supervisor.list().is_empty());
        (containers, namespaces.values().any(|one| one.forwarder.is_busy()))
    }

    /// Ends; the containers go on.
    pub(crate) async fn close(&self) {
        for (_, namespace) in self.namespaces.lock().await.drain() {
            namespace.supervisor.clone().shutdown().await;
        }
    }

    async fn serve(self: Arc<Self>, stream: UnixStream) -> std::io::Result<()> {
        let (mut reader, mut writer) = stream.into_split();
        let (answers, mut waiting) = mpsc::channel::<Frame>(ANSWERS);
        let writing = tokio::spawn(async move {
            let mut bytes = BytesMut::new();
            while let Some(frame) = waiting.recv().await {
                frame.encode(&mut bytes);
                while let Ok(frame) = waiting.try_recv() {
                    frame.encode(&mut bytes);
                }
                writer.write_all(&bytes).await?;
                bytes.clear();
            }
            Ok::<(), std::io::Error>(())
        });
        let (mut frames, mut read) = (Frames::default(), BytesMut::new());
        let mut hello: Option<Hello> = None;
        'reading: loop {
            while let Some(item) = frames.next(&mut read) {
                let frame = match item {
                    Item::Frame(frame) if frame.kind == Kind::Request => frame,
                    Item::Frame(_) => continue,
                    Item::TooLong { stream, .. } => {
                        let text = "the message is longer than 4 MiB";
                        let failure = Failure::new(Code::ResourceExhausted, text);
                        let _ = answers.send(answer_of(stream, failure.into())).await;
                        continue;
                    }
                };
                let Ok(request) = Request::decode(frame.message.clone()) else {
                    let failure = invalid("this is no request");
                    let _ = answers.send(answer_of(frame.stream, failure.into())).await;
                    continue;
                };
                if request.service == front::SERVICE && request.method == front::HELLO {
                    let Ok(said) = Hello::decode(request.payload.as_slice()) else {
                        break 'reading;
                    };
                    if !said.ttrpc_address.is_empty() {
                        *self.containerd.lock().unwrap_or_else(PoisonError::into_inner) =
                            said.ttrpc_address.clone();
                    }
                    hello = Some(said);
                    continue;
                }
                let (this, hello, answers) = (self.clone(), hello.clone(), answers.clone());
                // What has begun is finished, whoever hangs up.
                tokio::spawn(async move {
                    let response = this.answer(hello, &frame, request).await;
                    let _ = answers.send(answer_of(frame.stream, response)).await;
                });
            }
            if reader.read_buf(&mut read).await? == 0 {
                break;
            }
        }
        writing.abort();
        Ok(())
    }

    async fn answer(&self, hello: Option<Hello>, frame: &Frame, request: Request) -> Response {
        let answered = self.dispatch(hello, frame, request).await;
        answered.unwrap_or_else(Response::from)
    }

    async fn dispatch(
        &self,
        hello: Option<Hello>,
        frame: &Frame,
        request: Request,
    ) -> Answer<Response> {
        let failed = |error: anyhow::Error| internal(format!("{error:#}"));
        if request.service == front::SERVICE && request.method == front::CLEANUP {
            let cleanup = front::Cleanup::decode(request.payload.as_slice())
                .map_err(|error| invalid(error.to_string()))?;
            let namespace = self.namespace(&cleanup.namespace).await.map_err(failed)?;
            let response = call::cleanup(&namespace, &cleanup).await;
            self.changed.notify_one();
            return Ok(Response::of(&response));
        }
        if !SERVICES.contains(&request.service.as_str()) {
            let text = format!("service {} is not served", request.service);
            return Err(Failure::new(Code::Unimplemented, text));
        }
        let Some(hello) = hello else { return Err(invalid("who calls was not said")) };
        let namespace = self.namespace(&hello.namespace).await.map_err(failed)?;
        let caller = Caller {
            group: hello.group,
            identity: format!("{}:{}", hello.connection, frame.stream),
            again: frame.flags & AGAIN != 0,
        };
        let method = request.method.clone();
        let response = call::call(&namespace, &caller, request).await;
        if method == "Delete" {
            self.changed.notify_one();
        }
        response
    }
}

fn answer_of(stream: u32, response: Response) -> Frame {
    let message = response.encode_to_vec().into();
    Frame { stream, kind: Kind::Response, flags: 0, message }
}
