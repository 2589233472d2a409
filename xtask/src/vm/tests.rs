//! Tests for the guest: the test program itself runs there. It finds the programs beside it, as it does here,
//! and takes busybox and runc from the guest. It only gives the orders, so it is not optimized.

use std::path::PathBuf;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::setup;

/// Builds the tests of this name and returns their executable.
pub(super) fn build(name: &str) -> anyhow::Result<PathBuf> {
    let messages = setup::output(crate::cargo().args([
        "test",
        "--package",
        "holdfast-tests",
        "--test",
        name,
        "--no-run",
        "--message-format",
        "json",
    ]))?;
    for line in messages.lines() {
        let message: Value = serde_json::from_str(line).context("a message of cargo's")?;
        if message["target"]["name"] == name
            && let Some(path) = message["executable"].as_str()
        {
            return Ok(path.into());
        }
    }
    bail!("cargo names no executable of the test `{name}`")
}
