//! Reads events back, in order, while others are being written.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};

use memchr::memmem;
use nix::fcntl::OFlag;

use super::{LIMIT, Line, lines, name_of, parse, segments};
use crate::{ContainerId, Directory, Event, EventKind, ExitRecord, Gap, GapReason};

/// Reads the events from a number on, including those that are written in the meantime.
#[derive(Debug)]
pub struct Reader {
    directory: Directory,
    /// The number of the next event to return.
    next: u64,
    segment: Option<Segment>,
    /// An event that was read, and must not be returned yet.
    ahead: Option<Event>,
}

/// A segment that is being read. Its open file stays readable after the segment was dropped.
#[derive(Debug)]
struct Segment {
    first: u64,
    content: BufReader<File>,
    /// A line whose end may not be written yet.
    line: Vec<u8>,
    /// The segment after this one. Once it exists, this one is complete.
    later: Option<u64>,
}

impl Segment {
    fn open(directory: &Directory, first: u64) -> io::Result<Self> {
        let file = directory.open_file(&name_of(first), OFlag::O_RDONLY)?;
        Ok(Self { first, content: BufReader::new(file), line: Vec::new(), later: None })
    }

    /// Returns the next event; `None` at the end of what is written.
    fn next(&mut self) -> io::Result<Option<Event>> {
        loop {
            self.content.read_until(b'\n', &mut self.line)?;
            if self.line.last() != Some(&b'\n') {
                return Ok(None);
            }
            let line = parse(self.line.trim_ascii_end());
            self.line.clear();
            if let Some(Line::Event(event)) = line {
                return Ok(Some(event));
            }
        }
    }
}

impl Reader {
    pub(super) fn new(directory: Directory, next: u64) -> Self {
        Self { directory, next, segment: None, ahead: None }
    }

    /// Returns the next events up to the number `upto`, which must have been published, and the
    /// gaps between them: at most `most` items and one more. Returns none if the events that are
    /// missing up to there were not written.
    ///
    /// # Errors
    ///
    /// If a segment cannot be read. The events that this call had read before the error are not
    /// returned by a later call; a new reader returns them.
    pub fn read(&mut self, upto: u64, most: usize) -> io::Result<VecDeque<Result<Event, Gap>>> {
        let mut found = VecDeque::new();
        while self.next <= upto && found.len() < most {
            let event = match self.ahead.take() {
                Some(event) => event,
                None => match self.next_event(&mut found) {
                    Ok(Some(event)) => event,
                    Ok(None) => break,
                    // The next call finds out again.
                    Err(_) if !found.is_empty() => break,
                    Err(error) => return Err(error),
                },
            };
            self.skip_to(event.seq.min(upto.saturating_add(1)), GapReason::Unclean, &mut found);
            if event.seq > upto {
                self.ahead = Some(event);
            } else {
                self.next = event.seq.saturating_add(1);
                found.push_back(Ok(event));
            }
        }
        Ok(found)
    }

    fn skip_to(
        &mut self,
        number: u64,
        reason: GapReason,
        found: &mut VecDeque<Result<Event, Gap>>,
    ) {
        if number > self.next {
            found.push_back(Err(Gap { first: self.next, last: number - 1, reason }));
            self.next = number;
        }
    }

    /// Returns the next event whose number is not below `self.next`.
    fn next_event(
        &mut self,
        found: &mut VecDeque<Result<Event, Gap>>,
    ) -> io::Result<Option<Event>> {
        loop {
            let Some(segment) = &mut self.segment else {
                let Some(first) = self.find(found)? else { return Ok(None) };
                self.open(first)?;
                continue;
            };
            match segment.next()? {
                Some(event) if event.seq >= self.next => return Ok(Some(event)),
                Some(_) => {}
                None => match segment.later {
                    Some(later) => self.open(later)?,
                    None => {
                        let first = segment.first;
                        let later = segments(&self.directory)?.into_iter().find(|it| *it > first);
                        // Read once more: this segment may have grown before the later one was
                        // begun.
                        segment.later = later;
                        if later.is_none() {
                            return Ok(None);
                        }
                    }
                },
            }
        }
    }

    /// Returns the segment that contains the next event, or the oldest segment.
    fn find(&mut self, found: &mut VecDeque<Result<Event, Gap>>) -> io::Result<Option<u64>> {
        let all = segments(&self.directory)?;
        let before = all.partition_point(|first| *first <= self.next);
        match (before.checked_sub(1), all.first()) {
            (Some(place), _) => Ok(Some(all[place])),
            (None, Some(oldest)) => {
                self.skip_to(*oldest, GapReason::Dropped, found);
                Ok(Some(*oldest))
            }
            (None, None) => Ok(None),
        }
    }

    fn open(&mut self, first: u64) -> io::Result<()> {
        self.segment = match Segment::open(&self.directory, first) {
            // The segment was dropped in the meantime; the caller searches again.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            opened => Some(opened?),
        };
        Ok(())
    }

    /// Returns the exit of the init process of the last container with this id, as far back as
    /// events are kept.
    ///
    /// # Errors
    ///
    /// If a segment cannot be read.
    pub fn last_exit(&self, id: &ContainerId) -> io::Result<Option<ExitRecord>> {
        let exit = self.last(id, |event| {
            event.process.is_init() && matches!(event.kind, EventKind::Exited { .. })
        })?;
        Ok(exit.and_then(|Event { kind, time, .. }| match kind {
            EventKind::Exited { status, evidence, oom_killed } => {
                Some(ExitRecord { status, evidence, time, oom_killed })
            }
            _ => None,
        }))
    }

    /// Returns the last event of containers with this id that `wanted` accepts, as far back as
    /// events are kept.
    ///
    /// # Errors
    ///
    /// If a segment cannot be read.
    pub fn last(
        &self,
        id: &ContainerId,
        wanted: impl Fn(&Event) -> bool,
    ) -> io::Result<Option<Event>> {
        let named = memmem::Finder::new(id.as_str());
        for first in segments(&self.directory)?.into_iter().rev() {
            let content = match self.directory.read(&name_of(first), LIMIT) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                content => content?,
            };
            if named.find(&content).is_none() {
                continue;
            }
            let found = lines(&content).rev().find_map(|line| match line {
                Line::Event(event) if event.container == *id && wanted(&event) => Some(event),
                _ => None,
            });
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}
