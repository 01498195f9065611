//! The tensors of a checkpoint, where they lie: `cargo run -p nv-weights --example tensors -- FOLDER`.
#![expect(clippy::print_stdout, reason = "this is what the example is for")]

use std::error::Error;

use nv_weights::{Checkpoint, ModelFiles};

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args().nth(1).ok_or("usage: tensors FOLDER")?;
    let files = ModelFiles::from_dir(dir)?;
    let checkpoint = Checkpoint::open(&files.weights)?;
    for tensor in checkpoint.tensors() {
        let file = tensor.path().file_name().unwrap_or_default().display();
        println!("{file}  {}  {}  {:?}", tensor.name(), tensor.dtype(), tensor.shape());
    }
    println!("{} tensors, {} bytes mapped", checkpoint.tensors().len(), checkpoint.num_bytes());
    Ok(())
}
