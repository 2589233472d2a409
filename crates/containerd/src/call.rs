//! The calls of the Task service: from bytes to what they ask for, and back.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use holdfast_ttrpc::Message;
use holdfast_ttrpc::front::Cleanup;
use holdfast_ttrpc::rpc::{Code, Failure, Request, Response};
use holdfast_ttrpc::task::{
    CheckpointTaskRequest, CloseIORequest, CreateTaskRequest, DeleteRequest, DeleteResponse,
    ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, ResizePtyRequest, ResumeRequest,
    StartRequest, StateRequest, StatsRequest, UpdateTaskRequest, WaitRequest,
};
use holdfast_ttrpc::types::Empty;
use tokio::time::timeout;

use crate::failure::{Answer, invalid};
use crate::namespace::Namespace;
use crate::task;

/// How long the removal of what is left of a container may take before `delete` is answered. containerd
/// waits 5 s for it.
const CLEANUP: Duration = Duration::from_millis(3500);

/// Whose request it is.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// The pod.
    pub(crate) group: String,
    /// The request: the same when it is sent again.
    pub(crate) identity: String,
    /// Whether an earlier supervisor may have begun it.
    pub(crate) again: bool,
}

fn decode<M: Message + Default>(request: &Request) -> Answer<M> {
    M::decode(request.payload.as_slice())
        .map_err(|error| invalid(format!("{}: {error}", request.method)))
}

/// Carries out a call.
pub(crate) async fn call(
    namespace: &Arc<Namespace>,
    caller: &Caller,
    request: Request,
) -> Answer<Response> {
    let r = &request;
    let nothing = |()| Response::of(&Empty {});
    match request.method.as_str() {
        "Create" => {
            let wanted: CreateTaskRequest = decode(r)?;
            task::create(namespace, caller, wanted).await.map(|made| Response::of(&made))
        }
        "Start" => {
            let wanted: StartRequest = decode(r)?;
            task::start(namespace, caller, &wanted).await.map(|started| Response::of(&started))
        }
        "Delete" => {
            let wanted: DeleteRequest = decode(r)?;
            task::delete(namespace, caller, &wanted).await.map(|deleted| Response::of(&deleted))
        }
        "Exec" => {
            let wanted: ExecProcessRequest = decode(r)?;
            task::exec(namespace, caller, wanted).await.map(nothing)
        }
        "State" => {
            let wanted: StateRequest = decode(r)?;
            task::state(namespace, &wanted).map(|state| Response::of(&state))
        }
        "Pids" => {
            let wanted: PidsRequest = decode(r)?;
            task::pids(namespace, &wanted.id).await.map(|pids| Response::of(&pids))
        }
        "Pause" => {
            let wanted: PauseRequest = decode(r)?;
            task::pause(namespace, caller, &wanted.id).await.map(nothing)
        }
        "Resume" => {
            let wanted: ResumeRequest = decode(r)?;
            task::resume(namespace, caller, &wanted.id).await.map(nothing)
        }
        "Checkpoint" => {
            let wanted: CheckpointTaskRequest = decode(r)?;
            task::checkpoint(namespace, caller, &wanted).await.map(nothing)
        }
        "Kill" => {
            let wanted: KillRequest = decode(r)?;
            task::kill(namespace, caller, &wanted).await.map(nothing)
        }
        "ResizePty" => {
            let wanted: ResizePtyRequest = decode(r)?;
            task::resize(namespace, &wanted).map(nothing)
        }
        "CloseIO" => {
            let wanted: CloseIORequest = decode(r)?;
            task::close_io(namespace, &wanted).map(nothing)
        }
        "Update" => {
            let wanted: UpdateTaskRequest = decode(r)?;
            task::update(namespace, &wanted).await.map(nothing)
        }
        "Wait" => {
            let wanted: WaitRequest = decode(r)?;
            task::wait(namespace, &wanted).await.map(|ended| Response::of(&ended))
        }
        "Stats" => {
            let wanted: StatsRequest = decode(r)?;
            task::stats(namespace, &wanted.id).await.map(|stats| Response::of(&stats))
        }
        // Connect and Shutdown are the front's own.
        method => {
            let text = format!("method {method} is not served");
            Err(Failure::new(Code::Unimplemented, text))
        }
    }
}

/// Removes what is left of a container whose shim containerd has lost, and says how it ended.
pub(crate) async fn cleanup(namespace: &Arc<Namespace>, wanted: &Cleanup) -> DeleteResponse {
    let there = task::container(namespace, &wanted.id).ok();
    let pid = there.as_ref().map_or(0, |container| namespace.pid_of_init(container));
    let past = match there {
        Some(_) => None,
        None => task::past(namespace, &wanted.id, "").await,
    };
    let removal = {
        let (namespace, wanted) = (namespace.clone(), wanted.clone());
        // It goes on, if containerd can't wait for it.
        tokio::spawn(async move { namespace.cleanup(&wanted.id, &wanted.bundle).await })
    };
    let _ = timeout(CLEANUP, removal).await;
    // Only now: the process may have ended by itself when the removal began, and nobody knew.
    let exit = there.map_or(past, |container| container.info().exit);
    match exit {
        Some(exit) => task::deleted(pid, Some(&exit)),
        // It ends by the signal of its removal.
        None => {
            DeleteResponse { pid, exit_status: 128 + 9, exited_at: Some(SystemTime::now().into()) }
        }
    }
}
