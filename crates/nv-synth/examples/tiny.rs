//! A random checkpoint to try things with: `cargo run --release -p nv-synth --example tiny -- FOLDER`.
#![expect(clippy::print_stdout, reason = "this is what the example is for")]

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use nv_synth::Recipe;

const CONFIG: &str = r#"{
    "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32
}"#;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args().nth(1).map(PathBuf::from).ok_or("usage: tiny FOLDER")?;
    let config = dir.with_extension("config.json");
    fs::write(&config, CONFIG)?;
    let recipe = Recipe { config, seed: 1, max_shard_bytes: 256 * 1024 };
    for shard in recipe.write(&dir)? {
        println!("{}", shard.display());
    }
    Ok(())
}
