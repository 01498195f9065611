//! What no crate can test alone: whole checkpoints, computed and compared.

mod equalities;
mod generation;
mod references;
mod tidy;
