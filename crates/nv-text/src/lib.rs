//! nv-text
