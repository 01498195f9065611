//! What untrusted bytes are put through, by the tests on every compiler and by libFuzzer on a nightly one.
//!
//! The fuzz targets of `tests/fuzz` are calls of these functions, and a test runs them on every file of its corpus.

pub mod targets;
