//! A model that says what its prompt tells it to, so that what a server makes of it can be foretold.
//!
//! Tokens are bytes. In `<say>…</say>` stands what is said; with `<forever>` in the prompt it is said again and again, and
//! with `<fail>` the model fails after three tokens.

use std::thread;
use std::time::Duration;

use candle_core::{Device, Tensor};
use nano_vllm_rs::config::GenerationConfig;
use nano_vllm_rs::engine::{Batch, BlockCopy, Engine, EngineConfig, KvCacheSize, Model, Result};
use nano_vllm_rs::server::{ServedModel, Server, ServerConfig};
use nano_vllm_rs::text::{ChatTemplate, Tokenizer};
use serde_json::{Map, Value, json};

/// Ends a text.
const EOS: u32 = 256;
/// Begins an answer.
const ANSWER: u32 = 257;
const VOCAB_SIZE: usize = 258;
const BLOCK_SIZE: usize = 8;

const TEMPLATE: &str = "{% if tools %}{{ tools | tojson }}\n{% endif %}\
    {% for message in messages %}\
    {% if message.content == 'refuse' %}{{ raise_exception('the template does not want to') }}{% endif %}\
    {{ message.role }}: {{ message.content }}\n{% endfor %}\
    {% if add_generation_prompt %}<answer>{% if enable_thinking is false %}<think>\n\n</think>\n\n{% elif enable_thinking is true %}<think>\n{% endif %}{% endif %}";

/// A server of the scripted model, for which sequences have `max_model_len` tokens at most and a step takes `step_time`.
pub(crate) fn server(config: ServerConfig, max_model_len: usize, step_time: Duration) -> Server {
    let blocks = 1024;
    let model = Scripted { slots: vec![0; blocks * BLOCK_SIZE], max_model_len, step_time };
    let engine_config = EngineConfig { max_num_seqs: 4, ..EngineConfig::default() };
    let engine = Engine::with_model(model, &engine_config).unwrap();
    let served = ServedModel {
        tokenizer: tokenizer(),
        chat_template: Some(ChatTemplate::new(TEMPLATE).unwrap()),
        generation_config: GenerationConfig {
            eos_token_id: vec![EOS],
            ..GenerationConfig::default()
        },
    };
    Server::new(engine, served, config).unwrap()
}

struct Scripted {
    /// The token of each slot.
    slots: Vec<u32>,
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
        let num_blocks = u32::try_from(self.slots.len() / BLOCK_SIZE).unwrap();
        KvCacheSize { num_blocks, block_size: BLOCK_SIZE, block_bytes: BLOCK_SIZE * 4 }
    }

    fn forward(&mut self, batch: &Batch<'_>) -> Result<Tensor> {
        thread::sleep(self.step_time);
        for &BlockCopy { src, dst } in batch.copies {
            let src = src as usize * BLOCK_SIZE;
            self.slots.copy_within(src..src + BLOCK_SIZE, dst as usize * BLOCK_SIZE);
        }
        let mut next = Vec::new();
        for sequence in batch.sequences {
            let slot = |position: usize| {
                let block = sequence.block_table[position / BLOCK_SIZE] as usize;
                block * BLOCK_SIZE + position % BLOCK_SIZE
            };
            for i in 0..sequence.num_tokens {
                let position = sequence.start_pos + i;
                self.slots[slot(position)] = batch.token_ids[sequence.first_token + i];
                let text: Vec<u32> = (0..=position).map(|at| self.slots[slot(at)]).collect();
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

/// A tokenizer whose tokens are all bytes, byte b with id b, and two added ones.
pub(crate) fn tokenizer() -> Tokenizer {
    Tokenizer::from_bytes(tokenizer_json().to_string().as_bytes()).unwrap()
}

fn tokenizer_json() -> Value {
    // The inverse of GPT-2's `bytes_to_unicode`.
    let mut others = 0x100..;
    let vocab: Map<String, Value> = (0..=u8::MAX)
        .map(|byte| {
            let code = match byte {
                0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => u32::from(byte),
                _ => others.next().unwrap(),
            };
            (char::from_u32(code).unwrap().to_string(), byte.into())
        })
        .collect();
    let added = |id: u32, content: &str| {
        json!({
            "id": id, "content": content, "special": true,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        })
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(EOS, "<end>"), added(ANSWER, "<answer>")],
        "normalizer": {"type": "NFC"}, "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": [],
        },
    })
}
