//! nv-config
