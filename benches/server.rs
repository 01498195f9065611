//! From token ids to server-sent events: the server's router over a model that costs next to nothing.
//!
//! `streamed` has an event a token and is measured in events, `whole` is the same text in one body and is measured in tokens; the engine's
//! part is the same. `server/API/how/requests at once`.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::http::{Request, StatusCode, header};
use candle_core::{Device, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput};
use nv_config::GenerationConfig;
use nv_engine::{Batch, Engine, EngineConfig, KvCacheSize, Model, Result};
use nv_server::{ServedModel, Server, ServerConfig, router};
use nv_text::Tokenizer;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tower::ServiceExt;

use crate::demo;

const TEXT: &str = " And the waters prevailed upon the earth an hundred and fifty days.";
const NUM_TOKENS: usize = 256;
const NUM_REQUESTS: [usize; 2] = [1, 16];
const BLOCK_SIZE: usize = 16;

struct Api {
    name: &'static str,
    path: &'static str,
    question: &'static str,
    /// What says something in a choice of an answer, or of a chunk of one.
    said: fn(&Value) -> Option<&str>,
}

const APIS: [Api; 2] = [
    Api {
        name: "chat",
        path: "/v1/chat/completions",
        question: r#"{"messages": [{"role": "user", "content": "In the beginning"}]}"#,
        said: |choice| {
            choice.pointer("/delta/content").or(choice.pointer("/message/content"))?.as_str()
        },
    },
    Api {
        name: "completions",
        path: "/v1/completions",
        question: r#"{"prompt": "In the beginning"}"#,
        said: |choice| choice["text"].as_str(),
    },
];

pub(crate) fn benches(criterion: &mut Criterion) {
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    let (server, text) = server();
    let router = router(server.clone()).unwrap();
    for api in APIS {
        let mut group = criterion.benchmark_group(format!("server/{}", api.name));
        for num_requests in NUM_REQUESTS {
            for is_streamed in [true, false] {
                let request = Asked { router: &router, api: &api, is_streamed, num_requests };
                let num_events = check(&request.answers(&runtime), api.said, &text);
                let (how, num_elements) = if is_streamed {
                    ("streamed", num_events)
                } else {
                    ("whole", num_requests * NUM_TOKENS)
                };
                group.throughput(Throughput::Elements(num_elements as u64));
                group.bench_function(BenchmarkId::new(how, num_requests), |b| {
                    b.iter(|| request.answers(&runtime));
                });
            }
        }
        group.finish();
    }
    runtime.block_on(server.shut_down());
}

/// So many equal requests at once.
struct Asked<'a> {
    router: &'a Router,
    api: &'a Api,
    is_streamed: bool,
    num_requests: usize,
}

impl Asked<'_> {
    /// The bodies of all answers.
    fn answers(&self, runtime: &Runtime) -> Vec<Bytes> {
        let mut body: Value = serde_json::from_str(self.api.question).unwrap();
        body["max_tokens"] = NUM_TOKENS.into();
        body["temperature"] = 0.into();
        body["stream"] = self.is_streamed.into();
        let body = Bytes::from(body.to_string());
        runtime.block_on(async {
            let mut asked = JoinSet::new();
            for _ in 0..self.num_requests {
                let request = Request::post(self.api.path)
                    .header(header::CONTENT_TYPE, "application/json")
                    .body(Body::from(body.clone()))
                    .unwrap();
                let router = self.router.clone();
                asked.spawn(async {
                    let response = router.oneshot(request).await.unwrap();
                    assert_eq!(response.status(), StatusCode::OK);
                    to_bytes(response.into_body(), usize::MAX).await.unwrap()
                });
            }
            asked.join_all().await
        })
    }
}

/// Asserts that each body says the model's text; returns how many events they are, none if they are no streams.
fn check(bodies: &[Bytes], said: fn(&Value) -> Option<&str>, text: &str) -> usize {
    let mut num_events = 0;
    for body in bodies {
        let body = std::str::from_utf8(body).unwrap();
        let events: Vec<&str> =
            body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert!(events.is_empty() || events.last() == Some(&"[DONE]"));
        assert!(events.is_empty() || events.len() > NUM_TOKENS, "{} events", events.len());
        num_events += events.len();
        let parts = if events.is_empty() { vec![body] } else { events };
        let mut found = String::new();
        for part in parts.into_iter().filter(|part| *part != "[DONE]") {
            let part: Value = serde_json::from_str(part).unwrap();
            found += said(&part["choices"][0]).unwrap_or_default();
        }
        assert!(found.len() > NUM_TOKENS && text.contains(&found), "{found}");
    }
    num_events
}

/// A server of the talker, and more of its text than it says at a time.
fn server() -> (Server, String) {
    let tokenizer = Tokenizer::from_file(demo("tokenizer.json")).unwrap();
    let token_ids: Arc<[u32]> = tokenizer.encode(TEXT, false).unwrap().into();
    let vocab_size = tokenizer.vocab_size();
    let text = TEXT.repeat(2 + NUM_TOKENS / token_ids.len());
    let engine_config = EngineConfig { max_num_seqs: 16, ..EngineConfig::default() };
    let engine = Engine::with_model(Talker { token_ids, vocab_size }, &engine_config).unwrap();
    let model = ServedModel {
        tokenizer,
        chat_template: None,
        generation_config: GenerationConfig::default(),
    };
    (Server::new(engine, model, ServerConfig::new("talker")).unwrap(), text)
}

/// A model that says the same again and again, from wherever a prompt ends.
struct Talker {
    token_ids: Arc<[u32]>,
    vocab_size: usize,
}

impl Model for Talker {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn max_position_embeddings(&self) -> usize {
        2 * NUM_TOKENS
    }

    fn kv_cache_size(&self) -> KvCacheSize {
        KvCacheSize { num_blocks: 1024, block_size: BLOCK_SIZE, block_bytes: 1 }
    }

    /// Returns the next token of each: `[num_tokens]`.
    fn forward(&mut self, batch: &Batch<'_>) -> Result<Tensor> {
        let next = batch.positions.iter().map(|at| self.token_ids[at % self.token_ids.len()]);
        let next: Vec<u32> = next.collect();
        Ok(Tensor::new(next, &Device::Cpu)?)
    }

    fn compute_logits(&mut self, hidden_states: &Tensor, rows: &[u32]) -> Result<Tensor> {
        let next = hidden_states.to_vec1::<u32>()?;
        let mut logits = vec![0.0f32; rows.len() * self.vocab_size];
        for (&row, logits) in rows.iter().zip(logits.chunks_exact_mut(self.vocab_size)) {
            logits[next[row as usize] as usize] = 1.0;
        }
        Ok(Tensor::from_vec(logits, (rows.len(), self.vocab_size), &Device::Cpu)?)
    }
}
