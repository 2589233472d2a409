//! The web page in headless Chromium: `tests/tests/browser.rs`. The picture in the documentation is renewed.

use crate::setup::{self, BUSYBOX, CHROMEDRIVER, CHROMIUM, RUNC};
use crate::suite;

pub(crate) fn run() -> anyhow::Result<()> {
    setup::ensure(&[RUNC, BUSYBOX, CHROMIUM, CHROMEDRIVER])?;
    suite::build()?;
    let mut tests = crate::cargo();
    tests.args([
        "test",
        "--quiet",
        "--package",
        "holdfast-tests",
        "--test",
        "web",
        "--test",
        "browser",
    ]);
    // One after the other: a thousand containers would slow down the picture's.
    tests.args(["--", "--test-threads=1"]);
    crate::run(tests.env("HOLDFAST_WEB_PICTURE", crate::workspace().join("docs/web.png")))
}
