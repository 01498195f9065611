//! nv-weights
