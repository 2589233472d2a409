//! `shim-log.json` and `log.json`: JSON lines with `level` and `msg`, the shim's and the runtime's
//! own. A failed start is explained from them.

use serde::Deserialize;

/// One line that could be read.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Message {
    /// `error`, `warning`, `info`, `debug`; youki has capitals.
    #[serde(default)]
    pub level: String,
    /// The text, which youki calls `message`.
    #[serde(default, alias = "message")]
    pub msg: String,
}

/// All messages of a log, in order. Lines of other loggers between them and a last line that was
/// cut short are passed over: whoever asks wants the error that is there.
pub fn messages(content: &[u8]) -> impl Iterator<Item = Message> {
    // The seed's shim ended no line, so several may stand in one.
    let of_line = |line| serde_json::Deserializer::from_slice(line).into_iter();
    content.split(|&b| b == b'\n').flat_map(move |line| of_line(line).map_while(Result::ok))
}

/// The first error of a log. The first names the cause; later ones are its consequences.
#[must_use]
pub fn first_error(content: &[u8]) -> Option<String> {
    messages(content)
        .find(|message| {
            ["error", "fatal", "panic"]
                .iter()
                .any(|level| message.level.eq_ignore_ascii_case(level))
        })
        .map(|message| message.msg)
}

/// A line for `shim-log.json`, line feed included.
#[must_use]
pub fn line(level: &str, msg: &str) -> String {
    let time = crate::Timestamp::now();
    format!("{}\n", serde_json::json!({ "level": level, "msg": msg, "time": time }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_comes_back_as_one_line(text in any::<String>(), noise in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut log = noise;
            log.push(b'\n');
            log.extend(line("error", &text).bytes());
            prop_assert_eq!(first_error(&log), Some(text));
        }
    }

    #[test]
    fn the_first_error_among_foreign_and_torn_lines() {
        let log = b"panic: something\n{\"level\":\"info\",\"msg\":\"a\"}\n[1,2]\n\
            {\"level\":\"error\",\"msg\":\"the cause\"}\n{\"level\":\"error\",\"msg\":\"later\"}\n{\"level\":\"err";
        assert_eq!(first_error(log).as_deref(), Some("the cause"));
        assert_eq!(first_error(b"{\"level\":\"error\",\"msg\":\"cut"), None);
        let seed = br#"{"level": "warn","msg": "a"}{"level": "error","msg": "b"}{"level": "er"#;
        assert_eq!(first_error(seed).as_deref(), Some("b"));
        let youki = br#"{"timestamp":"2026","level":"ERROR","message":"c","target":"youki"}"#;
        assert_eq!(first_error(youki).as_deref(), Some("c"));
        assert_eq!(
            first_error(line("error", "quote \" and\nline").as_bytes()).as_deref(),
            Some("quote \" and\nline")
        );
    }

    #[test]
    fn what_ends_a_runtime_is_an_error_and_a_warning_is_none() {
        for (level, is_error) in [
            ("error", true),
            ("fatal", true),
            ("panic", true),
            ("Error", true),
            ("warning", false),
            ("info", false),
            ("", false),
        ] {
            assert_eq!(first_error(line(level, "m").as_bytes()).is_some(), is_error, "{level}");
        }
    }
}
