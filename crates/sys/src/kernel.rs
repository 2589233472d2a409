//! What this kernel can do.

use std::sync::OnceLock;

/// The kernel's release as its first two numbers, as in `(6, 18)`; `(0, 0)` if it makes no sense.
#[must_use]
pub fn release() -> (u32, u32) {
    static RELEASE: OnceLock<(u32, u32)> = OnceLock::new();
    *RELEASE.get_or_init(|| {
        let name = nix::sys::utsname::uname();
        name.ok().and_then(|name| parse(name.release().to_str()?)).unwrap_or_default()
    })
}

/// Whether it tells how a process ended after it was reaped by whomever (`PIDFD_INFO_EXIT`, Linux
/// 6.15+). A kernel before that does not refuse the question, so this goes by the release.
#[must_use]
pub fn tells_endings() -> bool {
    release() >= (6, 15)
}

/// Whether a zombie shows the status of its process before it is reaped (Linux 5.17+). Before that
/// `waitid(2)` with `WNOWAIT` and `/proc/PID/stat` show the status of its main thread, which is another
/// one, and mostly 0, where that thread has called `pthread_exit(3)`.
#[must_use]
pub fn tells_before_reap() -> bool {
    release() >= (5, 17)
}

fn parse(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_two_numbers() {
        assert_eq!(parse("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(parse("6.1.0-44-cloud-amd64"), Some((6, 1)));
        assert_eq!(parse("rubbish"), None);
        assert!(release() > (4, 0));
    }
}
