//! The OpenAPI document.
//!
//! `docs/openapi.json` is made from the table of requests in `routes`, the arguments and results of the
//! handlers, and the types in [`api`](crate::api). That happens in a test of `describe`, which compares what
//! it has made with the file. So the daemon itself only serves the file.

#[cfg(test)]
pub(crate) mod describe;

use crate::answer::Text;

/// The document.
const DOCUMENT: &str = include_str!("../../../docs/openapi.json");

/// Answers with the document.
pub(crate) async fn show() -> Text<serde_json::Value> {
    Text::new(DOCUMENT)
}
