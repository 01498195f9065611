//! nv-engine
