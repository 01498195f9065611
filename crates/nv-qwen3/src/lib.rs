//! nv-qwen3
