//! Fixtures of the cross-crate tests: an exchange that plays a script, components built from source,
//! and engines made from configurations as the program makes them.

pub mod engines;
pub mod plugins;
pub mod script;
