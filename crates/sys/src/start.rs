//! A program without the standard library's own start.

use std::ffi::{CStr, OsStr, c_char};
use std::os::unix::ffi::OsStrExt;

/// The program's arguments, beginning with its name, where the kernel put them.
#[derive(Debug, Clone)]
pub struct Arguments(*const *const c_char);

impl Arguments {
    /// # Safety
    /// `argv` is what the C library gave to `main`.
    pub unsafe fn new(argv: *const *const c_char) -> Self {
        Self(argv)
    }
}

impl Iterator for Arguments {
    type Item = &'static OsStr;

    fn next(&mut self) -> Option<&'static OsStr> {
        // SAFETY: it points into an array that ends with a null pointer, which is never passed, and
        // of which each other element is a string. Both stay as they are as long as the program runs.
        let text = unsafe {
            if (*self.0).is_null() {
                return None;
            }
            let text = CStr::from_ptr(*self.0);
            self.0 = self.0.add(1);
            text
        };
        Some(OsStr::from_bytes(text.to_bytes()))
    }
}

/// Makes a function from [`Arguments`](crate::start::Arguments) to an exit code (`u8`) the program's
/// `main`.
///
/// The program begins with no descriptors but the standard ones.
///
/// With `main!(run, with inherited)` the function also gets what [`all_inherited`](crate::fd::all_inherited)
/// returns, and nothing is closed.
///
/// What the standard library does before `main` is left out: it opens closed standard descriptors,
/// ignores `SIGPIPE`, and prepares for telling a stack overflow from another fault.
#[macro_export]
macro_rules! main {
    ($run:path, with inherited) => {
        fn run_with_inherited(arguments: $crate::start::Arguments) -> u8 {
            // SAFETY: this is the first that `main` calls, so nothing has been opened yet.
            #[allow(unsafe_code)]
            let inherited = unsafe { $crate::fd::all_inherited() };
            $run(arguments, inherited)
        }
        $crate::main!(@ run_with_inherited, ());
    };
    ($run:path) => {
        $crate::main!(@ $run, {
            // Whatever an embedding program let slip must reach no container, nor be kept open by us.
            // SAFETY: nothing has been opened yet. Where it fails there is no /proc, and no use in us.
            let _ = unsafe { $crate::fd::close_inherited() };
        });
    };
    (@ $run:path, $first:expr) => {
        // SAFETY: the one symbol of this name, with the type that the C library calls it by; a
        // panic ends the process where unwinding would leave this function.
        #[allow(unsafe_code)]
        #[unsafe(no_mangle)]
        extern "C" fn main(
            _argc: ::core::ffi::c_int,
            argv: *const *const ::core::ffi::c_char,
        ) -> ::core::ffi::c_int {
            $first;
            // SAFETY: it is.
            let arguments = unsafe { $crate::start::Arguments::new(argv) };
            ::core::ffi::c_int::from($run(arguments))
        }
    };
}
