//! A model that says what its prompt tells it to, so that what a server makes of it can be foretold.
//!
//! Tokens are bytes. In `<say>…</say>` stands what is said; with `<forever>` in the prompt it is said again and again, and
//! with `<fail>` the model fails after three tokens.

use std::thread;
use std::time::Duration;

use candle_core::{Device, Tensor};
use nv_config::GenerationConfig;
use nv_engine::{Batch, BlockCopy, Engine, EngineConfig, KvCacheSize, Model, Result};
use nv_server::{ServedModel, Server, ServerConfig};
use nv_text::{ChatTemplate, Tokenizer};

use crate::byte_tokenizer::{AddedToken, byte_tokenizer_json};
use crate::slots::Slots;

/// Ends a text.
const EOS: u32 = 256;
/// Begins an answer.
const ANSWER: u32 = 257;
const VOCAB_SIZE: usize = 258;

const TEMPLATE: &str = "{% if tools %}{{ tools | tojson }}\n{% endif %}\
    {% for message in messages %}\
    {% if message.content == 'refuse' %}{{ raise_exception('the template does not want to') }}{% endif %}\
    {{ message.role }}: {{ message.content }}\n{% endfor %}\
    {% if add_generation_prompt %}<answer>{% if enable_thinking is false %}<think>\n\n</think>\n\n{% elif enable_thinking is true %}<think>\n{% endif %}{% endif %}";

/// A server of the scripted model, for which sequences have `max_model_len` tokens at most and a step takes `step_time`.
pub fn scripted_server(config: ServerConfig, max_model_len: usize, step_time: Duration) -> Server {
    let model = Scripted { slots: Slots::new(1024, 8, 0), max_model_len, step_time };
    let engine_config = EngineConfig { max_num_seqs: 4, ..EngineConfig::default() };
    let engine = Engine::with_model(model, &engine_config).unwrap();
    let served = ServedModel {
        tokenizer: scripted_tokenizer(),
        chat_template: Some(ChatTemplate::new(TEMPLATE).unwrap()),
        generation_config: GenerationConfig {
            eos_token_id: vec![EOS],
            ..GenerationConfig::default()
        },
    };
    Server::new(engine, served, config).unwrap()
}

struct Scripted {
    /// The tokens.
    slots: Slots<u32>,
    max_model_len: usize,
    step_time: Duration,
}

impl Scripted {
    /// What comes after `text`.
    fn next(text: &[u32]) -> u32 {
        let answer = text.iter().rposition(|&id| id == ANSWER).unwrap_or(text.len() - 1);
        let bytes: Vec<u8> = text.iter().map(|&id| u8::try_from(id).unwrap_or(b'\n')).collect();
        let prompt = String::from_utf8_lossy(&bytes[..answer]).into_owned();
        let said = prompt.rsplit_once("<say>").and_then(|(_, rest)| rest.split_once("</say>"));
        let said = said.map_or("Hello!", |(said, _)| said).as_bytes();
        let num_said = text.len() - answer - 1;
        match said.get(num_said % said.len()) {
            Some(&byte) if num_said < said.len() || prompt.contains("<forever>") => byte.into(),
            _ => EOS,
        }
    }
}

fn contains(text: &[u32], bytes: &[u8]) -> bool {
    let is_same = |(&id, &byte)| id == u32::from(byte);
    text.windows(bytes.len()).any(|window| window.iter().zip(bytes).all(is_same))
}

impl Model for Scripted {
    fn vocab_size(&self) -> usize {
        VOCAB_SIZE
    }

    fn max_position_embeddings(&self) -> usize {
        self.max_model_len
    }

    fn kv_cache_size(&self) -> KvCacheSize {
        let (num_blocks, block_size) = (self.slots.num_blocks(), self.slots.block_size());
        KvCacheSize { num_blocks, block_size, block_bytes: block_size * size_of::<u32>() }
    }

    fn forward(&mut self, batch: &Batch<'_>) -> Result<Tensor> {
        thread::sleep(self.step_time);
        for &BlockCopy { src, dst } in batch.copies {
            self.slots.copy_block(src, dst);
        }
        let mut next = Vec::new();
        for sequence in batch.sequences {
            let table = sequence.block_table;
            for i in 0..sequence.num_tokens {
                let position = sequence.start_pos + i;
                self.slots.set(table, position, batch.token_ids[sequence.first_token + i]);
                let text = self.slots.up_to(table, position);
                if text.iter().rev().nth(3) == Some(&ANSWER) && contains(&text, b"<fail>") {
                    return Err(candle_core::Error::Msg("the script says so".to_owned()).into());
                }
                next.push(Self::next(&text));
            }
        }
        let num_tokens = next.len();
        Ok(Tensor::from_vec(next, num_tokens, &Device::Cpu)?)
    }

    fn compute_logits(&mut self, hidden_states: &Tensor, rows: &[u32]) -> Result<Tensor> {
        let next = hidden_states.to_vec1::<u32>()?;
        let logits = rows.iter().flat_map(|&row| {
            let next = next[row as usize];
            (0..VOCAB_SIZE).map(move |id| if id == next as usize { 30.0 } else { 0.0 })
        });
        let shape = (rows.len(), VOCAB_SIZE);
        Ok(Tensor::from_vec(logits.collect::<Vec<f32>>(), shape, &Device::Cpu)?)
    }
}

/// The tokenizer of the scripted model: bytes, `<end>` and `<answer>`, which are special.
pub fn scripted_tokenizer() -> Tokenizer {
    let added = |id, content| AddedToken { id, content, special: true };
    let json = byte_tokenizer_json(&[added(EOS, "<end>"), added(ANSWER, "<answer>")]);
    Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap()
}
