//! The output of a process, as a stream of bytes or of lines.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use holdfast_state::ExitRecord;
use holdfast_state::cri::{self, Mark};
use tokio::io::{AsyncBufRead, AsyncRead, ReadBuf};
use tokio_util::io::StreamReader;

use crate::error::Error;
use crate::log::entries::LANES;
use crate::log::entries::LogChunk;
use crate::log::reader::LogReader;

/// The length in bytes from which a line without end is returned in pieces, so that it does not
/// fill the memory.
const MAX_LINE: usize = 16 * 1024 * 1024;

/// Reads one stream of a process's output, byte for byte as its log holds it. The end of file comes
/// when the process has ended and all its output has been read. A read fails if the log can't be
/// read, or if the supervisor is shut down before the end.
///
/// The notices by which Holdfast reports missing output are left out. [`LogReader`] and
/// [`LogLines`] return them.
pub struct OutputReader(StreamReader<BoxStream<'static, io::Result<Bytes>>, Bytes>);

impl OutputReader {
    pub(crate) fn new(log: LogReader, stream: cri::Stream) -> Self {
        let bytes = log.into_stream().filter_map(move |chunk| {
            std::future::ready(match chunk {
                Ok(chunk) if chunk.stream == stream && chunk.mark != Mark::Notice => {
                    Some(Ok(chunk.bytes))
                }
                Ok(_) => None,
                Err(error) => Some(Err(error)),
            })
        });
        Self(StreamReader::new(bytes.boxed()))
    }
}

impl fmt::Debug for OutputReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutputReader").finish_non_exhaustive()
    }
}

impl AsyncRead for OutputReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncBufRead for OutputReader {
    fn poll_fill_buf(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        Pin::new(&mut self.get_mut().0).poll_fill_buf(context)
    }

    fn consume(mut self: Pin<&mut Self>, amount: usize) {
        Pin::new(&mut self.0).consume(amount);
    }
}

/// A line of output, or a notice by Holdfast.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogLine {
    /// The stream to which it was written.
    pub stream: cri::Stream,
    /// The time at which the shim read the beginning of the line (RFC 3339). `None` for a log of
    /// the driver `file`, which stores the bytes alone.
    pub time: Option<String>,
    /// Whether the container wrote it, and whether it may be a repetition.
    pub mark: Mark,
    /// The bytes of the line, without the line feed.
    pub bytes: Bytes,
    /// Whether a line feed ended the line. If not, the line is the last one of its stream, or it is
    /// longer than 16 MiB and continues in the next item.
    pub complete: bool,
}

/// Returns the lines of a process's output, of both streams, in the order in which the lines end in
/// the log. There is no order between streams that have separate files. It ends when the process
/// has ended and all its output has been read.
///
/// An item is an error if the log can't be read, or if the supervisor is shut down before the end.
/// The stream ends after an error.
pub struct LogLines(BoxStream<'static, io::Result<LogLine>>);

impl LogLines {
    pub(crate) fn new(log: LogReader) -> Self {
        let begin = (Some(log), Assembly::default());
        Self(futures::stream::unfold(begin, next_line).boxed())
    }
}

impl LogReader {
    /// Reads on as lines, like [`Container::lines`](crate::Container::lines).
    #[must_use]
    pub fn into_lines(self) -> LogLines {
        LogLines::new(self)
    }
}

/// All that a process has written, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Output {
    /// How it ended.
    pub exit: ExitRecord,
    /// Its standard output, as far as its log keeps it.
    pub stdout: Vec<u8>,
    /// Its standard error, as far as its log keeps it.
    pub stderr: Vec<u8>,
}

impl Output {
    pub(crate) async fn of(
        mut log: LogReader,
        exit: impl Future<Output = Result<ExitRecord, Error>>,
    ) -> Result<Self, Error> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        while let Some(chunk) = log.follow().await.map_err(Error::io("read the output"))? {
            match (chunk.mark, chunk.stream) {
                // Not the container's.
                (Mark::Notice, _) => {}
                (_, cri::Stream::Stdout) => stdout.extend_from_slice(&chunk.bytes),
                (_, cri::Stream::Stderr) => stderr.extend_from_slice(&chunk.bytes),
            }
        }
        Ok(Self { exit: exit.await?, stdout, stderr })
    }
}

impl fmt::Debug for LogLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogLines").finish_non_exhaustive()
    }
}

impl Stream for LogLines {
    type Item = io::Result<LogLine>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(context)
    }
}

type Reading = (Option<LogReader>, Assembly);

async fn next_line((mut log, mut lines): Reading) -> Option<(io::Result<LogLine>, Reading)> {
    loop {
        if let Some(line) = lines.ready.pop_front() {
            return Some((Ok(line), (log, lines)));
        }
        match log.as_mut()?.follow().await {
            Ok(Some(chunk)) => lines.add(chunk),
            Ok(None) => {
                log = None;
                lines.end();
            }
            Err(error) => return Some((Err(error), (None, lines))),
        }
    }
}

/// The lines that are being assembled from their pieces.
#[derive(Debug, Default)]
struct Assembly {
    ready: VecDeque<LogLine>,
    begun: [Option<Begun>; LANES],
}

/// The first piece of a line, without its bytes, and the bytes of all pieces so far.
#[derive(Debug)]
struct Begun {
    first: LogChunk,
    bytes: BytesMut,
}

impl Assembly {
    fn add(&mut self, mut chunk: LogChunk) {
        // An entry contains at most one line; raw bytes come in blocks of many lines.
        while let Some(place) = memchr::memchr(b'\n', &chunk.bytes)
            && place + 1 < chunk.bytes.len()
        {
            let line = LogChunk { bytes: chunk.bytes.split_to(place + 1), ..chunk.clone() };
            self.add_piece(line);
        }
        self.add_piece(chunk);
    }

    fn add_piece(&mut self, chunk: LogChunk) {
        let place = &mut self.begun[chunk.lane()];
        let complete = chunk.ends_line();
        let content = chunk.bytes.strip_suffix(b"\n").unwrap_or(&chunk.bytes);
        let begun = place.get_or_insert_with(|| {
            let first = LogChunk { bytes: Bytes::new(), ..chunk.clone() };
            Begun { first, bytes: BytesMut::new() }
        });
        begun.bytes.extend_from_slice(content);
        if (complete || begun.bytes.len() >= MAX_LINE)
            && let Some(line) = place.take()
        {
            self.ready.push_back(line.finish(complete));
        }
    }

    /// Finishes the lines that have no end: no more output will come.
    fn end(&mut self) {
        let rest = self.begun.iter_mut().filter_map(Option::take);
        self.ready.extend(rest.map(|line| line.finish(false)));
    }
}

impl Begun {
    fn finish(self, complete: bool) -> LogLine {
        let LogChunk { stream, time, mark, .. } = self.first;
        LogLine { stream, time, mark, bytes: self.bytes.freeze(), complete }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cri::Stream::{Stderr, Stdout};

    fn piece(stream: cri::Stream, time: &str, mark: Mark, text: &str) -> LogChunk {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        LogChunk { stream, time: Some(time.to_owned()), mark, bytes }
    }

    #[test]
    fn pieces_become_lines_each_stream_and_the_notices_by_themselves() {
        let mut lines = Assembly::default();
        for chunk in [
            piece(Stdout, "1", Mark::Plain, "a"),
            piece(Stderr, "2", Mark::Plain, "x\n"),
            piece(Stdout, "3", Mark::Notice, "lost\n"),
            piece(Stdout, "4", Mark::Plain, "b\n"),
            piece(Stdout, "5", Mark::Plain, "\n"),
            piece(Stdout, "6", Mark::Plain, "c\nd\n\ne"),
            piece(Stderr, "7", Mark::Plain, "y"),
        ] {
            lines.add(chunk);
        }
        lines.end();
        let got: Vec<_> = lines
            .ready
            .iter()
            .map(|line| {
                let text = String::from_utf8_lossy(&line.bytes).into_owned();
                (line.time.as_deref().unwrap_or_default(), text, line.complete)
            })
            .collect();
        let expected = [
            ("2", "x", true),
            ("3", "lost", true),
            ("1", "ab", true),
            ("5", "", true),
            ("6", "c", true),
            ("6", "d", true),
            ("6", "", true),
            ("6", "e", false),
            ("7", "y", false),
        ];
        assert_eq!(got, expected.map(|(time, text, complete)| (time, text.to_owned(), complete)));
    }

    #[test]
    fn a_line_without_end_does_not_fill_the_memory() {
        let mut lines = Assembly::default();
        let block = "x".repeat(1024 * 1024);
        for _ in 0..20 {
            lines.add(piece(Stdout, "1", Mark::Plain, &block));
        }
        let line = lines.ready.pop_front().unwrap();
        assert_eq!((line.bytes.len(), line.complete), (MAX_LINE, false));
    }
}
