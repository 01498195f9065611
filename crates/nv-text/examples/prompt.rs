//! A message as the model sees it: `cargo run -p nv-text --example prompt -- FOLDER "Why is the sky blue?"`.
#![expect(clippy::print_stdout, reason = "this is what the example is for")]

use std::error::Error;
use std::path::PathBuf;

use nv_text::{ChatMessage, ChatOptions, ChatTemplate, Tokenizer};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(dir), Some(message)) = (args.next().map(PathBuf::from), args.next()) else {
        return Err("usage: prompt FOLDER MESSAGE".into());
    };
    let tokenizer = Tokenizer::from_dir(&dir)?;
    let template = ChatTemplate::from_dir(&dir)?;
    let prompt = match template {
        Some(template) => {
            let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
            template.render(&[ChatMessage::new("user", &message)], &options)?
        }
        None => message,
    };
    println!("{prompt}");
    for token_id in tokenizer.encode(&prompt, false)? {
        println!("{token_id:>6}  {:?}", tokenizer.decode(&[token_id], false));
    }
    Ok(())
}
