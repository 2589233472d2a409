//! `holdfast-shim`: see the library.

#![cfg_attr(not(test), no_main)]

#[cfg(not(test))]
holdfast_sys::main!(holdfast_shim::run);
