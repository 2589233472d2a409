//! Random numbers.

use std::io;

/// Fills it with what `getrandom(2)` gives: no file is opened for that.
pub fn fill(bytes: &mut [u8]) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        // SAFETY: the kernel writes at most so many bytes there, and says how many it has written.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => rest = &mut rest[got..],
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_two_are_the_same_and_none_is_left_out() {
        let mut all = [[0_u8; 37]; 2];
        for bytes in &mut all {
            super::fill(bytes).expect("random numbers");
            // One in ten to the 77th is all zeros at its end.
            assert_ne!(bytes[5..], [0; 32]);
        }
        assert_ne!(all[0], all[1]);
    }
}
