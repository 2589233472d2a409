//! Keys that end an attachment and leave the container to itself.

use std::str::FromStr;

/// What is typed to detach, as it is written: `ctrl-p,ctrl-q`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Keys(Vec<u8>);

impl FromStr for Keys {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').map(key).collect::<Option<_>>().map(Self).ok_or_else(|| {
            "give keys as in ctrl-p,ctrl-q: single characters, or ctrl- and one of a-z @ [ \\ ] ^ _, \
             separated by commas"
                .to_owned()
        })
    }
}

/// The byte that a terminal sends for a key.
fn key(text: &str) -> Option<u8> {
    match text.strip_prefix("ctrl-").unwrap_or_default().as_bytes() {
        [key @ (b'a'..=b'z' | b'@' | b'['..=b'_')] => return Some(key & 0x1f),
        [] => {}
        _ => return None,
    }
    match text.as_bytes() {
        [key] if key.is_ascii_graphic() || *key == b' ' => Some(*key),
        _ => None,
    }
}

/// Looks for the keys in what is typed. What may be their beginning is held back until it is known
/// not to be.
#[derive(Debug)]
pub(crate) struct Lookout {
    keys: Vec<u8>,
    matched: usize,
}

impl Lookout {
    pub(crate) fn new(keys: &Keys) -> Self {
        Self { keys: keys.0.clone(), matched: 0 }
    }

    /// What of the input goes on to the container, and whether the keys were typed after that.
    pub(crate) fn pass(&mut self, input: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::with_capacity(input.len());
        for &byte in input {
            while self.matched > 0 && self.keys[self.matched] != byte {
                self.give_up_first(&mut out);
            }
            if self.keys[self.matched] == byte {
                self.matched += 1;
            } else {
                out.push(byte);
            }
            if self.matched == self.keys.len() {
                return (out, true);
            }
        }
        (out, false)
    }

    /// What is held back still, when the input is over.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.keys[..self.matched]
    }

    /// The first of what is held back is no beginning of the keys; a later one may be.
    fn give_up_first(&mut self, out: &mut Vec<u8>) {
        let held = &self.keys[..self.matched];
        let shorter = (0..held.len()).rev().find(|length| held.ends_with(&self.keys[..*length]));
        let shorter = shorter.unwrap_or_default();
        out.extend_from_slice(&held[..held.len() - shorter]);
        self.matched = shorter;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_as_docker_has_them() {
        for (text, keys) in [
            ("ctrl-p,ctrl-q", &[0x10, 0x11][..]),
            ("a", b"a"),
            ("ctrl-a,B,c", b"\x01Bc"),
            ("ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_", &[0, 27, 28, 29, 30, 31]),
        ] {
            assert_eq!(text.parse::<Keys>().unwrap().0, keys, "{text}");
        }
        for text in ["", ",", "a,", "ctrl-", "ctrl-P", "ctrl-ab", "ab", "ctrl-1", "é", "alt-x"] {
            assert!(text.parse::<Keys>().is_err(), "{text}");
        }
    }

    #[test]
    fn everything_else_goes_on_however_it_is_cut() {
        for (keys, input, passed, typed) in [
            ("ctrl-p,ctrl-q", &b"abc"[..], &b"abc"[..], false),
            ("ctrl-p,ctrl-q", b"a\x10b", b"a\x10b", false),
            ("ctrl-p,ctrl-q", b"a\x10\x11b", b"a", true),
            ("ctrl-p,ctrl-q", b"\x10\x10\x11", b"\x10", true),
            ("a,a,b", b"aaab", b"a", true),
            ("a,b,a,c", b"ababac", b"ab", true),
            ("a,b,a,c", b"ababad", b"ababad", false),
            ("x", b"ax", b"a", true),
        ] {
            for size in 1..=input.len() {
                let mut lookout = Lookout::new(&keys.parse().unwrap());
                let (mut out, mut found) = (Vec::new(), false);
                for part in input.chunks(size) {
                    let (more, typed) = lookout.pass(part);
                    out.extend(more);
                    found = typed;
                    if typed {
                        break;
                    }
                }
                if !found {
                    out.extend(lookout.rest());
                }
                assert_eq!((out.as_slice(), found), (passed, typed), "{keys} {input:?} by {size}");
            }
        }
    }
}
