//! A call and its answer, as ttrpc has them.

use prost::Message;

use crate::types::Any;

/// `ttrpc.KeyValue`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct KeyValue {
    /// The key.
    #[prost(string, tag = "1")]
    pub key: String,
    /// The value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// `ttrpc.Request`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Request {
    /// The service, as in `containerd.task.v2.Task`.
    #[prost(string, tag = "1")]
    pub service: String,
    /// The method, as in `Create`.
    #[prost(string, tag = "2")]
    pub method: String,
    /// The message of the method.
    #[prost(bytes = "vec", tag = "3")]
    pub payload: Vec<u8>,
    /// How long the caller waits, in nanoseconds; 0 for ever.
    #[prost(int64, tag = "4")]
    pub timeout_nano: i64,
    /// What else the caller says.
    #[prost(message, repeated, tag = "5")]
    pub metadata: Vec<KeyValue>,
}

/// `ttrpc.Response`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Response {
    /// Why the call failed.
    #[prost(message, optional, tag = "1")]
    pub status: Option<Failure>,
    /// The message that the method returns.
    #[prost(bytes = "vec", tag = "2")]
    pub payload: Vec<u8>,
}

/// `google.rpc.Status`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Failure {
    /// A [`Code`].
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// For people.
    #[prost(string, tag = "2")]
    pub message: String,
    /// More.
    #[prost(message, repeated, tag = "3")]
    pub details: Vec<Any>,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code: code as i32, message: message.into(), details: Vec::new() }
    }
}

/// `google.rpc.Code`, those that a shim uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
#[expect(missing_docs, reason = "the names of gRPC say it")]
pub enum Code {
    Ok = 0,
    Canceled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
}

impl Response {
    /// The answer of a call that went well.
    #[must_use]
    pub fn of(message: &impl Message) -> Self {
        Self { status: None, payload: message.encode_to_vec() }
    }

    /// Whether the call went well.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.status.as_ref().is_none_or(|status| status.code == Code::Ok as i32)
    }
}

impl From<Failure> for Response {
    fn from(failure: Failure) -> Self {
        Self { status: Some(failure), payload: Vec::new() }
    }
}
