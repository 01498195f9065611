//! nano-vllm-rs
