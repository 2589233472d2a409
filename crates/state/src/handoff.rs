//! The one message by which descriptors of a process go from one to another of those who look after it: from
//! a supervisor to a shim that adopts, to a spare one and to a group, and to a group from the shim that has
//! started a process for it; and from a `holdfast-conmon` to the one that adopts its container.
//!
//! | bytes | what |
//! |---|---|
//! | 3 | `HFD` |
//! | 1 | the version of the format: 2 |
//! | 4 | the length of the whole message, the lowest byte first |
//! | 1 | how many descriptors go along (`SCM_RIGHTS`, unix(7)) |
//! | 17 each | a descriptor, in their order: the letter of its name, and what it is open for |
//! | the rest | the command line that a shim of the process's own would have, each word ended by a zero byte |
//!
//! Who receives it refuses it as a whole unless each descriptor came, is what the message says, and is of the
//! type that its name asks for.
//!
//! Builds before it sent the letters alone, or their number, the letters, and the words. That is still read:
//! while a new build is installed, a supervisor of the old one may begin new shims.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use holdfast_sys::fd::Identity;
use holdfast_sys::fd_passing;
use nix::sys::stat::{SFlag, fstat};

/// The version of the format. A group takes its messages at a socket whose name ends with it.
pub const VERSION: u8 = 2;

/// The longest message, in bytes.
pub const MAX_LEN: usize = 128 * 1024;

const MAGIC: &[u8] = b"HFD";
/// What comes before the descriptors.
const HEAD_LEN: usize = MAGIC.len() + 6;
const ENTRY_LEN: usize = 1 + Identity::LEN;

/// What a descriptor is to the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FdName {
    /// Its pidfd. Without one the process is yet to be started.
    Process,
    /// The reading end of its standard output.
    Stdout,
    /// The reading end of its standard error.
    Stderr,
    /// The master of its terminal.
    Terminal,
    /// Its stdin FIFO, open for writing so that it does not end.
    Stdin,
    /// The writing end of its exit FIFO.
    Exit,
    /// Its control FIFO.
    Control,
    /// Its shim's log, for one that is to be started.
    Log,
    /// What `holdfast-conmon` has noted of it: a file in memory.
    Record,
    /// The socket on which `holdfast-conmon` reports the end of an exec.
    Sync,
}

impl FdName {
    const ALL: [Self; fd_passing::MAX] = [
        Self::Process,
        Self::Stdout,
        Self::Stderr,
        Self::Terminal,
        Self::Stdin,
        Self::Exit,
        Self::Control,
        Self::Log,
        Self::Record,
        Self::Sync,
    ];

    const fn letter(self) -> u8 {
        match self {
            Self::Process => b'p',
            Self::Stdout => b'o',
            Self::Stderr => b'e',
            Self::Terminal => b't',
            Self::Stdin => b'i',
            Self::Exit => b'x',
            Self::Control => b'c',
            Self::Log => b'l',
            Self::Record => b'r',
            Self::Sync => b's',
        }
    }

    fn of_letter(letter: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|name| name.letter() == letter)
    }

    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Terminal => "terminal",
            Self::Stdin => "stdin",
            Self::Exit => "exit FIFO",
            Self::Control => "control FIFO",
            Self::Log => "shim's log",
            Self::Record => "record",
            Self::Sync => "sync socket",
        }
    }

    /// Whether a descriptor can be this.
    fn fits(self, fd: &OwnedFd) -> io::Result<bool> {
        let kind = SFlag::from_bits_truncate(fstat(fd)?.st_mode) & SFlag::S_IFMT;
        Ok(match self {
            // On Linux 6.9 and later it is a regular file of pidfs, before that of no type at all.
            Self::Process => kind == SFlag::S_IFREG || kind.is_empty(),
            Self::Terminal => kind == SFlag::S_IFCHR,
            Self::Stdout | Self::Stderr | Self::Stdin | Self::Exit | Self::Control => {
                kind == SFlag::S_IFIFO
            }
            // Whatever a shim's standard error may be.
            Self::Log => true,
            Self::Record => kind == SFlag::S_IFREG,
            Self::Sync => kind == SFlag::S_IFSOCK,
        })
    }
}

/// A message that is to be sent.
#[derive(Debug)]
pub struct Message<'a> {
    bytes: Vec<u8>,
    fds: Vec<BorrowedFd<'a>>,
}

impl<'a> Message<'a> {
    /// # Errors
    /// `E2BIG` if the words are too long for it.
    pub fn new<'w>(
        fds: impl IntoIterator<Item = (FdName, BorrowedFd<'a>)>,
        words: impl IntoIterator<Item = &'w OsStr>,
    ) -> io::Result<Self> {
        let (names, fds): (Vec<_>, Vec<_>) = fds.into_iter().unzip();
        let entries = names.into_iter().zip(&fds).map(|(name, fd)| Ok((name, Identity::of(fd)?)));
        let bytes = encode(&entries.collect::<io::Result<Vec<_>>>()?, words)?;
        Ok(Self { bytes, fds })
    }

    /// As it is sent.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Sends it on a socket that keeps messages apart. It comes as a whole, or not at all.
    ///
    /// # Errors
    /// Those of sendmsg(2).
    pub fn send(&self, socket: impl AsFd) -> io::Result<()> {
        fd_passing::send(socket, &self.bytes, &self.fds)
    }
}

fn encode<'w>(
    entries: &[(FdName, Identity)],
    words: impl IntoIterator<Item = &'w OsStr>,
) -> io::Result<Vec<u8>> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend([VERSION, 0, 0, 0, 0, u8::try_from(entries.len()).unwrap_or(u8::MAX)]);
    for (name, identity) in entries {
        bytes.push(name.letter());
        bytes.extend(identity.to_bytes());
    }
    for word in words {
        bytes.extend_from_slice(word.as_bytes());
        bytes.push(0);
    }
    if bytes.len() > MAX_LEN {
        let text = format!("the command line is longer than the {MAX_LEN} bytes for a shim's");
        return Err(io::Error::new(io::ErrorKind::ArgumentListTooLong, text));
    }
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    bytes[MAGIC.len() + 1..HEAD_LEN - 1].copy_from_slice(&length.to_le_bytes());
    Ok(bytes)
}

/// What a message says.
#[derive(Debug, PartialEq, Eq)]
pub struct Content<'a> {
    /// The descriptors that go along, in their order, and what each is; that was not said by builds before.
    pub fds: Vec<(FdName, Option<Identity>)>,
    /// The words, each ended by a zero byte.
    words: &'a [u8],
}

impl<'a> Content<'a> {
    /// Reads a message. `None` if it makes no sense.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let Some(rest) = bytes.strip_prefix(MAGIC) else { return Self::parse_older(bytes) };
        let (&[version], rest) = rest.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (&[count], rest) = rest.split_first_chunk()?;
        if version != VERSION || u32::from_le_bytes(*length) as usize != bytes.len() {
            return None;
        }
        let (entries, words) = rest.split_at_checked(usize::from(count) * ENTRY_LEN)?;
        let entry = |entry: &[u8]| {
            let (&[letter], identity) = entry.split_first_chunk()?;
            Some((FdName::of_letter(letter)?, Some(Identity::of_bytes(identity.try_into().ok()?))))
        };
        Self::new(entries.chunks(ENTRY_LEN).map(entry).collect::<Option<_>>()?, words)
    }

    /// Those of builds before.
    fn parse_older(bytes: &'a [u8]) -> Option<Self> {
        let (letters, words) = match bytes.split_first()? {
            (&count, rest) if usize::from(count) <= fd_passing::MAX => {
                rest.split_at_checked(usize::from(count))?
            }
            _ => (bytes, &[][..]),
        };
        let entry = |&letter: &u8| Some((FdName::of_letter(letter)?, None));
        Self::new(letters.iter().map(entry).collect::<Option<_>>()?, words)
    }

    fn new(fds: Vec<(FdName, Option<Identity>)>, words: &'a [u8]) -> Option<Self> {
        let is_twice = |(at, (name, _)): (usize, &(FdName, _))| {
            fds[..at].iter().any(|(other, _)| other == name)
        };
        let is_sound = matches!(words, [] | [.., 0]) && !fds.iter().enumerate().any(is_twice);
        is_sound.then_some(Self { fds, words })
    }
}

/// A message that has come: its descriptors by their names, and its words.
#[derive(Debug)]
pub struct Handoff<'a> {
    fds: Vec<(FdName, OwnedFd)>,
    words: &'a [u8],
}

impl<'a> Handoff<'a> {
    /// Receives one message. `None` at the end of the stream.
    ///
    /// # Errors
    /// Those of recvmsg(2), `WouldBlock` and `EMFILE` (no room for the descriptors) among them; and
    /// `InvalidData` for a message that is refused, all of whose descriptors are closed by then.
    pub fn receive(socket: impl AsFd, room: &'a mut [u8]) -> io::Result<Option<Self>> {
        let (length, fds) = fd_passing::receive(socket, room)?;
        Self::if_any(&room[..length], fds)
    }

    /// The same, and the message stays where it is.
    ///
    /// # Errors
    /// Those of [`receive`](Self::receive).
    pub fn peek(socket: impl AsFd, room: &'a mut [u8]) -> io::Result<Option<Self>> {
        let (length, fds) = fd_passing::peek(socket, room)?;
        Self::if_any(&room[..length], fds)
    }

    fn if_any(bytes: &'a [u8], fds: Vec<OwnedFd>) -> io::Result<Option<Self>> {
        if bytes.is_empty() { Ok(None) } else { Self::of(bytes, fds).map(Some) }
    }

    /// What a message with these descriptors says.
    fn of(bytes: &'a [u8], fds: Vec<OwnedFd>) -> io::Result<Self> {
        let refused = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
        let content = Content::parse(bytes)
            .ok_or_else(|| refused("a message without sense, or of another version".to_owned()))?;
        if content.fds.len() != fds.len() {
            let text = format!("{} descriptors came of {}", fds.len(), content.fds.len());
            return Err(refused(text));
        }
        let named = content.fds.into_iter().zip(fds).map(|((name, identity), fd)| {
            let is_it = match identity {
                Some(identity) => Identity::of(&fd)? == identity,
                None => true,
            };
            if is_it && name.fits(&fd)? {
                return Ok((name, fd));
            }
            Err(refused(format!("a descriptor came as the {} and is not that", name.word())))
        });
        Ok(Self { fds: named.collect::<io::Result<_>>()?, words: content.words })
    }

    /// A descriptor, once.
    pub fn take(&mut self, name: FdName) -> Option<OwnedFd> {
        let at = self.fds.iter().position(|(other, _)| *other == name)?;
        Some(self.fds.swap_remove(at).1)
    }

    /// Whether it has this descriptor.
    #[must_use]
    pub fn has(&self, name: FdName) -> bool {
        self.fds.iter().any(|(other, _)| *other == name)
    }

    /// The words, each ended by a zero byte.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.words
    }

    /// The words.
    pub fn words(&self) -> impl Iterator<Item = &'a OsStr> + Clone + use<'a> {
        self.words
            .split_inclusive(|&byte| byte == 0)
            .map(|word| OsStr::from_bytes(word.strip_suffix(&[0]).unwrap_or(word)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs::File;
    use std::os::unix::net::UnixDatagram;

    fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    fn pipe() -> OwnedFd {
        std::io::pipe().unwrap().0.into()
    }

    /// Sends bytes with descriptors, and receives them as a message.
    fn through(bytes: &[u8], fds: &[&OwnedFd]) -> io::Result<(Vec<FdName>, Vec<Vec<u8>>)> {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        fd_passing::send(&ours, bytes, &fds).unwrap();
        let mut room = [0; 512];
        let handoff = Handoff::receive(&theirs, &mut room)?.unwrap();
        let words = handoff.words().map(|word| word.as_bytes().to_vec()).collect();
        Ok((handoff.fds.iter().map(|(name, _)| *name).collect(), words))
    }

    #[test]
    fn descriptors_come_by_their_names_and_words_may_be_empty_and_no_text() {
        let (exit, log) = (pipe(), null());
        let words = [OsStr::new("--dir"), OsStr::new(""), OsStr::from_bytes(&[0xff])];
        let fds = [(FdName::Exit, exit.as_fd()), (FdName::Log, log.as_fd())];
        let message = Message::new(fds, words).unwrap();
        let (names, got) = through(&message.bytes, &[&exit, &log]).unwrap();
        assert_eq!(names, [FdName::Exit, FdName::Log]);
        assert_eq!(got, [&b"--dir"[..], b"", &[0xff]]);
    }

    #[test]
    fn what_is_not_what_the_message_says_is_refused() {
        let (exit, other, log) = (pipe(), pipe(), null());
        let fds = [(FdName::Exit, exit.as_fd()), (FdName::Log, log.as_fd())];
        let bytes = Message::new(fds, [OsStr::new("x")]).unwrap().bytes;
        let refused = |fds: &[&OwnedFd], text: &str| {
            let error = through(&bytes, fds).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(error.to_string().contains(text), "{error}");
        };
        refused(&[&other, &log], "as the exit FIFO");
        refused(&[&log, &exit], "as the exit FIFO");
        refused(&[&exit], "1 descriptors came of 2");
        refused(&[&exit, &log, &other], "3 descriptors came of 2");
        let wrong = Message::new([(FdName::Stdout, log.as_fd())], []).unwrap();
        assert!(through(&wrong.bytes, &[&log]).is_err(), "not a pipe");
    }

    #[test]
    fn another_version_a_cut_message_and_a_name_twice_are_refused() {
        let exit = pipe();
        let bytes = Message::new([(FdName::Exit, exit.as_fd())], [OsStr::new("x")]).unwrap().bytes;
        assert!(Content::parse(&bytes).is_some());
        for length in 0..bytes.len() {
            assert_eq!(Content::parse(&bytes[..length]), None, "{length} bytes");
        }
        let mut newer = bytes;
        newer[MAGIC.len()] += 1;
        assert_eq!(Content::parse(&newer), None);
        assert_eq!(Content::parse(b"pp"), None);
    }

    /// As the builds up to November 2026 sent them.
    #[test]
    fn messages_of_older_builds_are_read() {
        let (exit, log) = (pipe(), null());
        let (names, words) = through(b"\x02xl--dir\0/x\0", &[&exit, &log]).unwrap();
        assert_eq!((names, words.len()), (vec![FdName::Exit, FdName::Log], 2));
        let (names, words) = through(b"oe", &[&exit, &pipe()]).unwrap();
        assert_eq!((names, words.len()), (vec![FdName::Stdout, FdName::Stderr], 0));
        assert_eq!(Content::parse(b"\x03x"), None);
    }

    #[test]
    fn what_is_too_long_is_an_error() {
        let of = |bytes: usize| Message::new([], [OsStr::new(&"x".repeat(bytes))]);
        // A command line may have thousands of arguments for the runtime.
        assert!(of(100_000).is_ok());
        let most = MAX_LEN - HEAD_LEN - 1;
        assert_eq!(of(most).unwrap().bytes().len(), MAX_LEN);
        let error = of(most + 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ArgumentListTooLong);
    }

    proptest! {
        #[test]
        fn what_makes_sense_reads_back(bytes in any::<Vec<u8>>(), new in any::<bool>()) {
            let bytes = if new {
                let mut all = MAGIC.to_vec();
                all.push(VERSION);
                let length = u32::try_from(MAGIC.len() + 5 + bytes.len()).unwrap();
                all.extend(length.to_le_bytes());
                all.extend(bytes);
                all
            } else {
                bytes
            };
            if let Some(content) = Content::parse(&bytes) {
                let entries: Option<Vec<_>> =
                    content.fds.iter().map(|(name, identity)| Some((*name, (*identity)?))).collect();
                let words: Vec<_> = content.words.split_inclusive(|&byte| byte == 0)
                    .map(|word| OsStr::from_bytes(&word[..word.len() - 1])).collect();
                if new && let Some(entries) = entries {
                    prop_assert_eq!(encode(&entries, words).unwrap(), bytes);
                }
            }
        }
    }

    #[test]
    fn a_message_is_laid_out_as_the_table_says() {
        let (exit, log) = (pipe(), null());
        let fds = [(FdName::Exit, exit.as_fd()), (FdName::Log, log.as_fd())];
        let message = Message::new(fds, [OsStr::new("--dir"), OsStr::new("/x")]).unwrap();
        let entry =
            |letter: &[u8], fd: &OwnedFd| [letter, &Identity::of(fd).unwrap().to_bytes()].concat();
        let expected =
            [b"HFD\x02\x34\0\0\0\x02", &entry(b"x", &exit)[..], &entry(b"l", &log), b"--dir\0/x\0"];
        assert_eq!(message.bytes(), expected.concat());
    }

    #[test]
    fn each_name_has_its_own_letter_and_word() {
        for (name, letter) in FdName::ALL.into_iter().zip(*b"poetixclrs") {
            assert_eq!(Content::parse(&[letter]).unwrap().fds, [(name, None)]);
            let same = |other: &FdName| other.word() == name.word();
            assert_eq!(FdName::ALL.into_iter().filter(same).count(), 1);
        }
        for letter in [b'P', b'z', 0, 1] {
            assert_eq!(FdName::of_letter(letter), None);
        }
    }

    #[test]
    fn a_descriptor_is_of_the_type_that_its_name_asks_for() {
        let (pipe, character, file) = (pipe(), null(), tempfile::tempfile().unwrap().into());
        let socket = UnixDatagram::unbound().unwrap().into();
        for name in FdName::ALL {
            let fits = [&pipe, &character, &file, &socket].map(|fd| name.fits(fd).unwrap());
            let expected = match name {
                FdName::Process | FdName::Record => [false, false, true, false],
                FdName::Terminal => [false, true, false, false],
                FdName::Log => [true, true, true, true],
                FdName::Sync => [false, false, false, true],
                _ => [true, false, false, false],
            };
            assert_eq!(fits, expected, "{name:?}");
        }
        let own = holdfast_sys::pidfd::PidFd::open(std::process::id().try_into().unwrap()).unwrap();
        assert!(FdName::Process.fits(&own.as_fd().try_clone_to_owned().unwrap()).unwrap());
    }

    #[test]
    fn each_descriptor_is_taken_once_and_the_stream_has_an_end() {
        let (ours, theirs) = fd_passing::pair().unwrap();
        let (exit, control) = (pipe(), pipe());
        let fds = [(FdName::Exit, exit.as_fd()), (FdName::Control, control.as_fd())];
        Message::new(fds, [OsStr::new("--dir"), OsStr::new("/x")]).unwrap().send(&ours).unwrap();
        drop(ours);
        let mut room = [0; 512];
        let mut handoff = Handoff::receive(&theirs, &mut room).unwrap().unwrap();
        assert_eq!(handoff.bytes(), b"--dir\0/x\0");
        let has = |handoff: &Handoff<'_>| {
            [FdName::Exit, FdName::Control, FdName::Process].map(|name| handoff.has(name))
        };
        assert_eq!(has(&handoff), [true, true, false]);
        assert!(handoff.take(FdName::Process).is_none());
        let taken = handoff.take(FdName::Control).unwrap();
        assert_eq!(Identity::of(&taken).unwrap(), Identity::of(&control).unwrap());
        assert_eq!(has(&handoff), [true, false, false]);
        assert!(handoff.take(FdName::Control).is_none());
        assert!(handoff.take(FdName::Exit).is_some());
        assert!(Handoff::receive(&theirs, &mut room).unwrap().is_none());
    }
}
