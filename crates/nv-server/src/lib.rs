//! The OpenAI API over HTTP, served by an [`Engine`](nv_engine::Engine).
//!
//! - [`Server`] is a model with its engine, its tokenizer and its limits; [`router`] is what it answers, for whoever
//!   brings a socket of their own; [`run`] serves it until a signal ends it.
//! - The paths: `/v1/chat/completions`, `/v1/completions`, `/v1/models`, `/tokenize`, `/detokenize`; `/health`, `/ready`,
//!   `/metrics`, `/version`, `/openapi.json`; and a page at `/`.
//!
//! Parameters have the names, the ranges and the defaults of the OpenAI API and, beyond it, of vLLM's server. Fields that
//! nobody knows are ignored, with a warning in the log; those that would change the answer and are not supported are
//! refused, be they the OpenAI API's, vLLM's or those of another server.
//!
//! Knows nothing of how tokens are computed, nor of files and command lines. What is asked and answered is never logged.
//!
//! ```no_run
//! use nv_engine::Engine;
//! use nv_server::{Outcome, ServedModel, Server, ServerConfig, run};
//!
//! # fn example(engine: Engine, model: ServedModel) -> nv_server::Result<()> {
//! let server = Server::new(engine, model, ServerConfig::new("qwen3"))?;
//! let outcome = run(server, "127.0.0.1", 8000, |address| println!("http://{address}"))?;
//! assert_eq!(outcome, Outcome::Drained);
//! # Ok(())
//! # }
//! ```
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod auth;
mod chat;
mod chat_answer;
mod choice;
mod completion_answer;
mod completions;
mod connections;
mod counts;
mod error;
mod fields;
mod generation;
mod guided;
mod health;
mod host;
mod ids;
mod logprobs;
mod metrics;
mod models;
mod params;
mod prompt;
mod refusals;
mod request_log;
mod router;
mod run;
mod server;
mod shortened;
mod sse;
mod thinking;
mod tokenize;
mod unsupported;
mod usage;

pub use error::{Error, Result};
pub use router::router;
pub use run::{Outcome, run};
pub use server::{ServedModel, Server, ServerConfig};
