//! What a model needs: `cargo run -p nv-config --example footprint -- config.json`.
#![expect(clippy::print_stdout, reason = "this is what the example is for")]

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: footprint CONFIG_JSON")?;
    let config = nv_config::load_config(path)?;
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let num_tokens = config.max_position_embeddings;
    let kv_bytes = config.kv_cache_bytes_per_token(2) as f64;
    println!("parameters           {}", config.num_parameters());
    println!("weights in bfloat16  {:.1} MiB", mib(config.num_parameters() as f64 * 2.0));
    println!("KV cache of a token  {:.3} MiB", mib(kv_bytes));
    println!("of {num_tokens} tokens  {:.1} MiB", mib(kv_bytes * num_tokens as f64));
    Ok(())
}
