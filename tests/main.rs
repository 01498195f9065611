//! What no crate can test alone: whole checkpoints, computed and compared.

mod bad_input;
mod copies;
mod corpora;
mod equalities;
mod generation;
mod quantized;
mod references;
mod serving;
mod tidy;
