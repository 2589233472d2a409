//! What the front of a pod and the supervisor behind it say to each other, beside the calls of
//! containerd that go through: further calls, of a service of their own.

use prost::Message;

/// The service.
pub const SERVICE: &str = "holdfast.containerd.Front";

/// The first call of a connection, which nobody answers: [`Hello`].
pub const HELLO: &str = "Hello";

/// Removes what is left of a container: [`Cleanup`], on stream [`STREAM`], from a connection of the
/// action `delete`, which begins with a [`HELLO`] too. The answer is a
/// [`DeleteResponse`](crate::task::DeleteResponse).
pub const CLEANUP: &str = "Cleanup";

/// Asks a front to wait for the container that `start` was called for, and not to end before:
/// [`Join`]. The answer is [`Joined`].
pub const JOIN: &str = "Join";

/// Tells a front that a container is gone, whose `Delete` it has not seen: [`Forget`]. The answer is
/// [`Empty`](crate::types::Empty).
pub const FORGET: &str = "Forget";

/// The stream of a front's own calls. Those of containerd have odd numbers.
pub const STREAM: u32 = 0;

/// Who speaks on this connection, and for whom.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Hello {
    /// The namespace of all containers of the front.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// The pod.
    #[prost(string, tag = "2")]
    pub group: String,
    /// The front and its connection to containerd; unique. With the number of a call it is the identity
    /// of a request.
    #[prost(string, tag = "3")]
    pub connection: String,
    /// Where containerd takes events.
    #[prost(string, tag = "4")]
    pub ttrpc_address: String,
}

/// `delete`: what is left of a container is to be removed.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Cleanup {
    /// Its namespace.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// Its id.
    #[prost(string, tag = "2")]
    pub id: String,
    /// Its bundle.
    #[prost(string, tag = "3")]
    pub bundle: String,
}

/// `start`: a container is about to be created by this front.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Join {
    /// Its id.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// The front waits for the container.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Joined {
    /// The newest version of the Task service that it passes on.
    #[prost(int32, tag = "1")]
    pub version: i32,
}

/// `delete`: a container is gone.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Forget {
    /// Its id.
    #[prost(string, tag = "1")]
    pub id: String,
}
