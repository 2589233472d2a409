//! Names of containers and of their processes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The longest id, in bytes.
pub const MAX_LEN: usize = 128;

/// The longest name of a group: it is also that of a socket, whose address takes no longer one.
pub const MAX_GROUP_LEN: usize = 64;

/// A text that is not a valid id.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "invalid id {text:?}: an id has 1 to {longest} of the characters a-z A-Z 0-9 _ . - and starts with a letter or digit"
)]
pub struct InvalidId {
    /// The beginning of the text.
    pub text: String,
    /// The length limit for an id of this kind, in bytes.
    pub longest: usize,
}

fn check(text: &str, longest: usize) -> Result<(), InvalidId> {
    let valid = text.len() <= longest
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if valid {
        Ok(())
    } else {
        Err(InvalidId { text: text.chars().take(longest).collect(), longest })
    }
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $longest:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(
            feature = "schemars",
            derive(schemars::JsonSchema),
            schemars(extend("pattern" = "^[a-zA-Z0-9][a-zA-Z0-9_.-]*$", "maxLength" = $longest))
        )]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// Returns the id as text. It is also the name of a directory.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                check(text, $longest)?;
                Ok(Self(text.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0.into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id_type! {
    /// The id of a container: `[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}`.
    ContainerId,
    MAX_LEN
}

id_type! {
    /// The id of a process within its container. That of the first process is [`ProcessId::init`].
    ProcessId,
    MAX_LEN
}

id_type! {
    /// The name of a group of processes that share a shim.
    GroupName,
    MAX_GROUP_LEN
}

/// The id of a container's first process.
pub const INIT: &str = "init";

impl ProcessId {
    /// Returns the id of the container's first process, `init`.
    #[must_use]
    pub fn init() -> Self {
        Self(INIT.into())
    }

    /// Returns whether this is the id of the container's first process.
    #[must_use]
    pub fn is_init(&self) -> bool {
        self.as_str() == INIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_could_leave_the_directory_is_no_id() {
        for bad in
            ["", ".", "..", "../x", "a/b", "/", ".hidden", "-x", "_x", "a b", "a\0b", "ä", "a\n"]
        {
            assert!(bad.parse::<ContainerId>().is_err(), "{bad:?}");
        }
        let error = "x".repeat(129).parse::<ContainerId>().unwrap_err();
        assert_eq!((error.text.len(), error.longest), (128, 128));
        for good in ["a", "7", "web-1", "a_b.c", &"x".repeat(128)] {
            assert_eq!(good.parse::<ContainerId>().unwrap().as_str(), good);
        }
    }

    proptest! {
        #[test]
        fn an_id_is_always_one_plain_path_component(text in any::<String>()) {
            if let Ok(id) = text.parse::<ContainerId>() {
                let path = std::path::Path::new(id.as_str());
                prop_assert_eq!(path.components().count(), 1);
                prop_assert!(matches!(path.components().next(), Some(std::path::Component::Normal(_))));
            }
        }
    }

    #[test]
    fn the_name_of_a_group_is_shorter() {
        assert!("x".repeat(64).parse::<GroupName>().is_ok());
        assert_eq!("x".repeat(65).parse::<GroupName>().unwrap_err().longest, 64);
    }

    #[test]
    fn the_first_process_of_a_container_is_init() {
        assert_eq!(ProcessId::init(), "init".parse().unwrap());
        assert!(ProcessId::init().is_init());
        assert!(!"init-1".parse::<ProcessId>().unwrap().is_init());
    }

    #[test]
    fn an_id_in_json_is_its_text_and_nothing_else_is_one() {
        let id: ContainerId = serde_json::from_str("\"web\"").unwrap();
        assert_eq!((id.as_str(), id.to_string().as_str()), ("web", "web"));
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"web\"");
        assert!(serde_json::from_str::<ContainerId>("\"../web\"").is_err());
    }
}
