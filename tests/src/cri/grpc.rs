//! One unary call of gRPC over a Unix socket.

use std::fmt;
use std::path::Path;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::{RecvStream, client};
use http::{HeaderMap, Request};
use prost::Message;
use tokio::net::UnixStream;

/// An error that the server answered with, or the reason why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The code of gRPC, as in 5 for "not found"; 14 ("unavailable") if the connection failed.
    pub code: u32,
    /// The server's message.
    pub message: String,
}

/// What gRPC calls a server that can't be reached.
const UNAVAILABLE: u32 = 14;
/// A flag for compression and a length, before each message.
const PREFIX: usize = 5;

impl Refused {
    fn unavailable(error: impl fmt::Display) -> Self {
        Self { code: UNAVAILABLE, message: error.to_string() }
    }
}

/// Calls a method on a connection of its own, so that a restart of the server needs no care.
pub(super) async fn call<R: Message + Default>(
    socket: &Path,
    method: &str,
    request: &impl Message,
) -> Result<R, Refused> {
    let stream = UnixStream::connect(socket).await.map_err(Refused::unavailable)?;
    let (requests, connection) = client::handshake(stream).await.map_err(Refused::unavailable)?;
    // It ends with the last handle to the connection.
    tokio::spawn(connection);
    let head = Request::post(format!("http://localhost{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .expect("a valid request");
    let mut requests = requests.ready().await.map_err(Refused::unavailable)?;
    let (response, mut body) = requests.send_request(head, false).map_err(Refused::unavailable)?;
    body.send_data(framed(request), true).map_err(Refused::unavailable)?;
    let response = response.await.map_err(Refused::unavailable)?;
    // An error without a message has its trailers where headers are.
    accepted(response.headers())?;
    let content = read(response.into_body()).await?;
    R::decode(content).map_err(Refused::unavailable)
}

fn framed(message: &impl Message) -> Bytes {
    let content = message.encode_to_vec();
    let mut frame = BytesMut::with_capacity(PREFIX + content.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(content.len()).expect("a message of less than 4 GiB"));
    frame.put_slice(&content);
    frame.freeze()
}

async fn read(mut body: RecvStream) -> Result<Bytes, Refused> {
    let mut content = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(Refused::unavailable)?;
        body.flow_control().release_capacity(data.len()).map_err(Refused::unavailable)?;
        content.put_slice(&data);
    }
    let trailers = body.trailers().await.map_err(Refused::unavailable)?;
    accepted(&trailers.unwrap_or_default())?;
    if content.len() < PREFIX {
        return Err(Refused::unavailable("an answer without a message"));
    }
    content.advance(PREFIX);
    Ok(content.freeze())
}

fn accepted(headers: &HeaderMap) -> Result<(), Refused> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match text("grpc-status") {
        "" | "0" => Ok(()),
        code => Err(Refused {
            code: code.parse().unwrap_or(UNAVAILABLE),
            message: text("grpc-message").to_owned(),
        }),
    }
}
