//! Streamed output: frames of one byte kind, four bytes length (big endian), content.
//!
//! | kind | content |
//! |---|---|
//! | 1 | bytes of standard output |
//! | 2 | bytes of standard error |
//! | 3 | a [`Message`] as JSON |
//! | 4 | bytes of a notice: Holdfast's own words about the output, as in what was dropped |
//! | 5 | a position: text that stands for all output before it; only if the client has asked for positions |

use bytes::{Buf, BufMut, Bytes, BytesMut};
pub use holdfast_supervisor::OutputStream;
use std::io;
use tokio_util::codec::{Decoder, Encoder};

use crate::api::Message;

/// The media type of such a stream.
pub const CONTENT_TYPE: &str = "application/vnd.holdfast.frames";

/// No frame is larger.
const MAX_LEN: usize = 16 * 1024 * 1024;
const HEADER_LEN: usize = 5;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// What the process wrote, byte for byte.
    Output(OutputStream, Bytes),
    /// A message about the process.
    Message(Message),
    /// What Holdfast says of the output, among it.
    Notice(Bytes),
    /// All that came before this was read up to this position.
    Position(Bytes),
}

/// Reads and writes frames.
#[derive(Debug, Clone, Copy, Default)]
pub struct Codec;

impl Encoder<Frame> for Codec {
    type Error = io::Error;

    fn encode(&mut self, frame: Frame, out: &mut BytesMut) -> io::Result<()> {
        let (kind, content) = match frame {
            Frame::Output(OutputStream::Stdout, bytes) => (1, bytes),
            Frame::Output(OutputStream::Stderr, bytes) => (2, bytes),
            Frame::Message(message) => (3, serde_json::to_vec(&message)?.into()),
            Frame::Notice(bytes) => (4, bytes),
            Frame::Position(bytes) => (5, bytes),
        };
        let length = u32::try_from(content.len()).map_err(io::Error::other)?;
        out.reserve(HEADER_LEN + content.len());
        out.put_u8(kind);
        out.put_u32(length);
        out.put(content);
        Ok(())
    }
}

impl Decoder for Codec {
    type Item = Frame;
    type Error = io::Error;

    fn decode(&mut self, input: &mut BytesMut) -> io::Result<Option<Frame>> {
        let Some(header) = input.first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let [kind, length @ ..] = *header;
        let length = usize::try_from(u32::from_be_bytes(length)).map_err(io::Error::other)?;
        if length > MAX_LEN {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "frame too large"));
        }
        if input.len() < HEADER_LEN + length {
            input.reserve(HEADER_LEN + length - input.len());
            return Ok(None);
        }
        input.advance(HEADER_LEN);
        let content = input.split_to(length).freeze();
        Ok(Some(match kind {
            1 => Frame::Output(OutputStream::Stdout, content),
            2 => Frame::Output(OutputStream::Stderr, content),
            3 => Frame::Message(serde_json::from_slice(&content)?),
            4 => Frame::Notice(content),
            5 => Frame::Position(content),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "frame of unknown kind")),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_supervisor::ExitStatus;

    #[test]
    fn frames_come_back_however_they_are_cut() {
        let frames = [
            Frame::Output(OutputStream::Stdout, Bytes::from_static(b"a\0\xff\n")),
            Frame::Output(OutputStream::Stderr, Bytes::new()),
            Frame::Notice(Bytes::from_static(b"2 lines dropped\n")),
            Frame::Position(Bytes::from_static(b"here")),
            Frame::Message(Message::Exited(ExitStatus::Signal(9))),
        ];
        let mut wire = BytesMut::new();
        for frame in frames.clone() {
            Codec.encode(frame, &mut wire).unwrap();
        }
        let mut got = Vec::new();
        let mut buffer = BytesMut::new();
        for byte in wire {
            buffer.put_u8(byte);
            while let Some(frame) = Codec.decode(&mut buffer).unwrap() {
                got.push(frame);
            }
        }
        assert_eq!(got, frames);
    }

    #[test]
    fn nonsense_is_an_error_and_takes_no_memory() {
        assert!(Codec.decode(&mut BytesMut::from(&b"\x01\xff\xff\xff\xff"[..])).is_err());
        assert!(Codec.decode(&mut BytesMut::from(&b"\x09\0\0\0\0"[..])).is_err());
    }
}
