//! What a network namespace has received and sent, by its interfaces (network_namespaces(7)).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

/// Bytes received and sent.
pub(crate) type Traffic = (u64, u64);

/// Returns the traffic of the network namespace of a process, without that of the loopback interface. `None` if it
/// is the namespace of this process: that traffic is the host's.
pub(crate) fn traffic(pid: i32) -> Option<Traffic> {
    if own_namespace()? == namespace(&pid.to_string())? {
        return None;
    }
    Some(sum(&fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?))
}

/// Returns the network namespace of this process at the time of the first call.
fn own_namespace() -> Option<(u64, u64)> {
    static OWN: OnceLock<Option<(u64, u64)>> = OnceLock::new();
    *OWN.get_or_init(|| namespace("self"))
}

/// Returns the device and the inode of the network namespace of a process: together, they identify it.
fn namespace(process: &str) -> Option<(u64, u64)> {
    let metadata = fs::metadata(format!("/proc/{process}/ns/net")).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Each line after the two of the header has the name of an interface, eight numbers for what it has received, and
/// eight for what it has sent. The first of each eight is bytes.
fn sum(text: &str) -> Traffic {
    let interfaces = text.lines().filter_map(|line| line.trim_start().split_once(':'));
    let numbers = interfaces.filter(|(name, _)| *name != "lo").filter_map(|(_, rest)| {
        let mut fields = rest.split_whitespace();
        Some((fields.next()?.parse::<u64>().ok()?, fields.nth(7)?.parse::<u64>().ok()?))
    });
    numbers.fold((0, 0), |sum, (received, sent)| {
        (sum.0.saturating_add(received), sum.1.saturating_add(sent))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_added_up_without_loopback() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
             face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
             lo:    1000      10    0    0    0     0          0         0     2000      10    0    0    0     0       0          0\n  \
             eth0: 1500      12    0    0    0     0          0         0      700       9    0    0    0     0       0          0\n  \
             eth1:20       1    0    0    0     0          0         0        3       1    0    0    0     0       0          0\n";
        assert_eq!(sum(text), (1520, 703));
        assert_eq!(sum(""), (0, 0));
        assert_eq!(sum("eth0: 1 2 3"), (0, 0));
    }

    #[test]
    fn the_own_namespace_is_not_that_of_a_container() {
        assert_eq!(traffic(std::process::id().cast_signed()), None);
    }
}
