//! The frames of ttrpc: a header of ten bytes, and a protobuf message.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The length of a header, in bytes.
pub const HEADER: usize = 10;

/// The longest message of a frame, in bytes. containerd refuses longer ones too.
pub const MOST: usize = 4 * 1024 * 1024;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A call.
    Request,
    /// The answer to a call.
    Response,
    /// A part of a stream, which no service here has.
    Data,
    /// Anything else.
    Other(u8),
}

impl Kind {
    fn of(byte: u8) -> Self {
        match byte {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Data,
            other => Self::Other(other),
        }
    }

    fn byte(self) -> u8 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Data => 3,
            Self::Other(byte) => byte,
        }
    }
}

/// A flag between front and supervisor: this request was sent before, to a supervisor that died
/// before it had answered. ttrpc uses the three lowest bits.
pub const AGAIN: u8 = 0x80;

/// A whole frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The call that it belongs to; unique within a connection.
    pub stream: u32,
    /// What it holds.
    pub kind: Kind,
    /// Its flags.
    pub flags: u8,
    /// The protobuf message.
    pub message: Bytes,
}

impl Frame {
    /// Appends its bytes.
    ///
    /// # Panics
    ///
    /// If the message is longer than a frame can say, 4 GiB.
    pub fn encode(&self, into: &mut BytesMut) {
        let length = u32::try_from(self.message.len()).expect("a message of less than 4 GiB");
        into.reserve(HEADER + self.message.len());
        into.put_u32(length);
        into.put_u32(self.stream);
        into.put_u8(self.kind.byte());
        into.put_u8(self.flags);
        into.put_slice(&self.message);
    }
}

/// What comes out of a stream of bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A frame.
    Frame(Frame),
    /// A frame whose message is longer than [`MOST`]. It is skipped, and the connection goes on.
    TooLong {
        /// The call that it belongs to.
        stream: u32,
        /// What it holds.
        kind: Kind,
        /// The length of its message, in bytes.
        length: usize,
    },
}

/// Cuts a stream of bytes into frames.
#[derive(Debug, Default)]
pub struct Frames {
    /// How many bytes of a message that is too long are still to come.
    skip: usize,
}

impl Frames {
    /// Takes the next frame out of what was read; `None` if it is not complete.
    pub fn next(&mut self, read: &mut BytesMut) -> Option<Item> {
        let skipped = self.skip.min(read.len());
        read.advance(skipped);
        self.skip -= skipped;
        let mut header = read.get(..HEADER)?;
        let length = header.get_u32() as usize;
        let (stream, kind, flags) = (header.get_u32(), Kind::of(header.get_u8()), header.get_u8());
        if length > MOST {
            read.advance(HEADER);
            self.skip = length;
            return Some(Item::TooLong { stream, kind, length });
        }
        if read.len() < HEADER + length {
            read.reserve(HEADER + length - read.len());
            return None;
        }
        read.advance(HEADER);
        Some(Item::Frame(Frame { stream, kind, flags, message: read.split_to(length).freeze() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames() -> impl Strategy<Value = Frame> {
        let message = proptest::collection::vec(any::<u8>(), 0..300);
        (any::<u32>(), any::<u8>(), any::<u8>(), message).prop_map(
            |(stream, kind, flags, message)| Frame {
                stream,
                kind: Kind::of(kind),
                flags,
                message: message.into(),
            },
        )
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_the_bytes_arrive(
            sent in proptest::collection::vec(frames(), 0..8), pieces in 1_usize..50)
        {
            let mut bytes = BytesMut::new();
            sent.iter().for_each(|frame| frame.encode(&mut bytes));
            let (mut frames, mut read, mut got) = (Frames::default(), BytesMut::new(), vec![]);
            for piece in bytes.chunks(pieces) {
                read.extend_from_slice(piece);
                while let Some(item) = frames.next(&mut read) {
                    got.push(item);
                }
            }
            prop_assert_eq!(got, sent.into_iter().map(Item::Frame).collect::<Vec<_>>());
            prop_assert!(read.is_empty());
        }
    }

    #[test]
    fn a_message_that_is_too_long_is_skipped_and_what_follows_is_read() {
        let after = Frame { stream: 3, kind: Kind::Request, flags: 0, message: Bytes::new() };
        let mut bytes = BytesMut::new();
        let long = vec![7; MOST + 1];
        Frame { stream: 1, kind: Kind::Request, flags: 0, message: long.into() }.encode(&mut bytes);
        after.encode(&mut bytes);
        let (mut frames, mut read, mut got) = (Frames::default(), BytesMut::new(), vec![]);
        for piece in bytes.chunks(100_000) {
            read.extend_from_slice(piece);
            while let Some(item) = frames.next(&mut read) {
                got.push(item);
            }
            assert!(read.len() <= 200_000, "{} bytes are kept", read.len());
        }
        let too_long = Item::TooLong { stream: 1, kind: Kind::Request, length: MOST + 1 };
        assert_eq!(got, [too_long, Item::Frame(after)]);
    }
}
