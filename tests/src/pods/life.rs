//! What a container's events must be: each at least once, and in order.

use std::collections::HashMap;

/// What an event says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Create,
    Added,
    Start,
    Exit(u32),
    Delete(u32),
}

/// An event of a container, or of an exec in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) container: String,
    pub(crate) exec: Option<String>,
    pub(crate) what: What,
    /// The message, which has the pid: the same again is the same event.
    pub(crate) content: Vec<u8>,
}

/// The events of a container, each once, as they came.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    events: Vec<Event>,
    pub(crate) duplicates: usize,
}

/// How far a container is by its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    Nothing,
    Created,
    Running,
    Ended,
}

impl History {
    pub(crate) fn push(&mut self, event: Event) {
        if self.events.contains(&event) {
            self.duplicates += 1;
        } else {
            self.events.push(event);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }

    /// How far the container is.
    pub(crate) fn at(&self) -> At {
        let last = self.events.iter().rev().find(|event| event.exec.is_none());
        match last.map(|event| event.what) {
            None | Some(What::Delete(_)) => At::Nothing,
            Some(What::Create | What::Added) => At::Created,
            Some(What::Start) => At::Running,
            Some(What::Exit(_)) => At::Ended,
        }
    }

    /// How the container ended last.
    pub(crate) fn status(&self) -> Option<u32> {
        self.events.iter().rev().find_map(|event| match (&event.exec, event.what) {
            (None, What::Exit(status)) => Some(status),
            _ => None,
        })
    }

    /// How an exec ended.
    pub(crate) fn exec_status(&self, id: &str) -> Option<u32> {
        self.events.iter().find_map(|event| match (event.exec.as_deref(), event.what) {
            (Some(exec), What::Exit(status)) if exec == id => Some(status),
            _ => None,
        })
    }

    /// Whether the container was started, has ended, and was deleted after that. What a start that was cut off has
    /// created may have been deleted before.
    pub(crate) fn is_complete(&self) -> bool {
        let init = self.events.iter().rev().filter(|event| event.exec.is_none());
        let mut last = init.take_while(|event| event.what != What::Create);
        self.at() == At::Nothing && last.any(|event| event.what == What::Start)
    }

    /// What is not in order.
    pub(crate) fn fault(&self) -> Option<String> {
        let (mut init, mut execs, mut ended) = (At::Nothing, HashMap::new(), None);
        for event in &self.events {
            let text = format!("{:?} of {:?}", event.what, event.exec);
            let Some(exec) = &event.exec else {
                init = match (init, event.what) {
                    (At::Nothing, What::Create) => At::Created,
                    (At::Created, What::Start) => At::Running,
                    (At::Created | At::Running, What::Exit(status)) => {
                        ended = Some(status);
                        if let Some((exec, _)) = execs.iter().find(|(_, at)| **at == At::Running) {
                            return Some(format!("{text} before that of exec {exec}"));
                        }
                        At::Ended
                    }
                    (At::Ended, What::Delete(status)) if ended == Some(status) => At::Nothing,
                    // Deleted before it was started.
                    (At::Created, What::Delete(_)) => At::Nothing,
                    (at, _) => return Some(format!("{text} of what is {at:?}")),
                };
                continue;
            };
            let at = execs.entry(exec.clone()).or_insert(At::Nothing);
            *at = match (*at, event.what) {
                // Its name is used once.
                (At::Nothing, What::Added) => At::Created,
                (At::Created, What::Start) => At::Running,
                (At::Running, What::Exit(_)) => At::Ended,
                (at, _) => return Some(format!("{text} of what is {at:?}")),
            };
            if init != At::Running {
                return Some(format!("{text} in a container that is {init:?}"));
            }
        }
        None
    }
}
