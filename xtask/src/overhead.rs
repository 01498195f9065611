//! `cargo xtask overhead`: what the server costs beside its engine: the same requests given to an [`Engine`] and streamed over
//! HTTP, in turn.
//!
//! Clients, server and engine may share the machine's processors, so that the time on the clock is not the server's alone. What
//! counts is therefore its processor time: that of `nv serve`, against that of this process while it runs the engine.

use std::fmt::{self, Display};
use std::io::Write;
use std::ops::ControlFlow;
use std::process;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nv_config::Qwen3Config;
use nv_engine::{Engine, EngineConfig, KvCacheMemory, Request, SamplingParams, TokenId};
use nv_qwen3::{Cpu, Qwen3ForCausalLM};
use nv_weights::{Checkpoint, ModelFiles};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde_json::json;

use crate::process::CpuClock;
use crate::root;
use crate::served::Served;
use crate::streaming::{self, Ended};

/// Which requests, and how often.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the model [default: the demo checkpoint].
    #[arg(long, value_name = "DIR")]
    model: Option<String>,
    /// Requests at once.
    #[arg(long, default_value_t = 32)]
    requests: usize,
    /// Tokens of a prompt.
    #[arg(long, default_value_t = 32)]
    input_len: usize,
    /// Tokens of an answer.
    #[arg(long, default_value_t = 512)]
    output_len: usize,
    /// How often each way is measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Threads of the model.
    #[arg(long, default_value_t = 1)]
    threads: u16,
    /// Profile that the server is built with; this program has that of `cargo xtask`, release.
    #[arg(long, default_value = "release")]
    profile: String,
}

/// What serving the requests took once.
#[derive(Debug, Clone, Copy)]
struct Took {
    /// On the clock.
    wall: Duration,
    /// Of the process that has the engine.
    cpu: Duration,
    /// Of the clients, where they are another process.
    clients: Duration,
}

/// Measures both ways in turn and prints what each took.
///
/// # Errors
/// If the server doesn't start or a request fails; where the system doesn't tell processor times.
///
/// # Panics
/// If a client's thread does.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    let dir =
        args.model.clone().unwrap_or_else(|| root().join("assets/demo").display().to_string());
    let files = ModelFiles::from_dir(&dir)?;
    let config = nv_config::load_config(&files.config)?;
    let prompts = prompts(args, config.vocab_size);
    let mut engine = engine(args, &files, &config)?;
    let (threads, seqs) = (args.threads.to_string(), args.requests.to_string());
    let memory = engine.kv_cache_size();
    let memory = (u64::from(memory.num_blocks) * memory.block_bytes as u64).to_string();
    let options = ["serve", &dir, "--port", "0", "--threads", &threads, "--max-num-seqs", &seqs];
    let like_engine = ["--kv-cache-memory", &memory, "--no-enable-prefix-caching"];
    let quiet = ["--dtype", "bf16", "--log-level", "warn"];
    let options = [&options[..], &like_engine, &quiet].concat();
    let server = Served::start(["--bin", "nv"], &args.profile, &options)?;

    // The first round of each way fills caches and buffers.
    direct(&mut engine, args, &prompts)?;
    streamed(&server, args, &prompts)?;
    let mut took = Vec::new();
    for round in 1..=args.rounds {
        let (direct, streamed) = if round % 2 == 0 {
            let streamed = streamed(&server, args, &prompts)?;
            (direct(&mut engine, args, &prompts)?, streamed)
        } else {
            (direct(&mut engine, args, &prompts)?, streamed(&server, args, &prompts)?)
        };
        writeln!(out, "{round}: engine {direct}; HTTP {streamed}")?;
        took.push((direct, streamed));
    }
    report(args, &took, out)
}

/// An engine with room for all requests, set as the server's.
fn engine(args: &Args, files: &ModelFiles, config: &Qwen3Config) -> Result<Engine> {
    let checkpoint = Arc::new(Checkpoint::open(&files.weights)?);
    let (cpu, dtype) = (Cpu::new(args.threads.into())?, candle_core::DType::BF16);
    let qwen3 = Qwen3ForCausalLM::from_checkpoint_on(config, &checkpoint, dtype, cpu)?;
    let block_size = EngineConfig::default().block_size;
    let len = (args.input_len + args.output_len).next_multiple_of(block_size) + block_size;
    let config = EngineConfig {
        kv_cache_memory: KvCacheMemory::Tokens(len * args.requests),
        max_num_seqs: args.requests,
        enable_prefix_caching: false,
        ..EngineConfig::default()
    };
    Ok(Engine::new(qwen3, config)?)
}

fn prompts(args: &Args, vocab_size: usize) -> Vec<Vec<TokenId>> {
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let mut token_id = || random.next_u32() % u32::try_from(vocab_size).unwrap_or(u32::MAX);
    (0..args.requests).map(|_| (0..args.input_len).map(|_| token_id()).collect()).collect()
}

/// Gives the requests to the engine, in this process.
fn direct(engine: &mut Engine, args: &Args, prompts: &[Vec<TokenId>]) -> Result<Took> {
    let params = SamplingParams::default().with_max_tokens(args.output_len)?;
    let requests = prompts.iter().map(|prompt| Request::new(prompt.clone(), params.clone()));
    let cpu = CpuClock::start(process::id())?;
    let start = Instant::now();
    for generation in engine.generate(requests.collect()) {
        let num_tokens = generation?.completions[0].token_ids.len();
        ensure!(num_tokens == args.output_len, "{num_tokens} tokens");
    }
    let wall = start.elapsed();
    Ok(Took { wall, cpu: cpu.elapsed()?, clients: Duration::ZERO })
}

/// Streams the requests from the server, each by a client of its own.
fn streamed(server: &Served, args: &Args, prompts: &[Vec<TokenId>]) -> Result<Took> {
    let (cpu, clients) = (CpuClock::start(server.id())?, CpuClock::start(process::id())?);
    let start = Instant::now();
    thread::scope(|scope| {
        let clients = prompts
            .iter()
            .map(|prompt| scope.spawn(move || client(&server.address, args, prompt)))
            .collect::<Vec<_>>();
        clients.into_iter().try_for_each(|client| client.join().expect("a client does not panic"))
    })?;
    let wall = start.elapsed();
    Ok(Took { wall, cpu: cpu.elapsed()?, clients: clients.elapsed()? })
}

fn client(address: &str, args: &Args, prompt: &[TokenId]) -> Result<()> {
    let body = json!({
        "prompt": prompt, "max_tokens": args.output_len, "temperature": 0, "ignore_eos": true, "stream": true,
    });
    let mut num_chunks = 0;
    let ended = streaming::stream(address, &body, |_| {
        num_chunks += 1;
        ControlFlow::Continue(())
    })?;
    ensure!(ended == Ended::Done && num_chunks > 0, "{ended:?} after {num_chunks} chunks");
    Ok(())
}

fn report(args: &Args, took: &[(Took, Took)], out: &mut dyn Write) -> Result<()> {
    let num_tokens = args.requests * args.output_len;
    let Args { requests, input_len, output_len, .. } = args;
    writeln!(out, "{requests} requests of {input_len} + {output_len} tokens")?;
    for (name, time) in [
        ("processor time of engine and server", (|took| took.cpu) as fn(&Took) -> Duration),
        ("time on the clock, clients included", |took| took.wall),
    ] {
        let pairs = took.iter().map(|(direct, streamed)| (time(direct), time(streamed)));
        let per_token = |time: Duration| time.as_secs_f64() * 1e6 / num_tokens as f64;
        let median = |values: &mut dyn Iterator<Item = f64>| {
            let mut values: Vec<f64> = values.collect();
            values.sort_unstable_by(f64::total_cmp);
            values.get(values.len() / 2).copied().context("no rounds")
        };
        let direct = median(&mut pairs.clone().map(|(direct, _)| per_token(direct)))?;
        let streamed = median(&mut pairs.clone().map(|(_, streamed)| per_token(streamed)))?;
        let ratios = &mut pairs.map(|(direct, streamed)| per_token(streamed) / per_token(direct));
        let overhead = (median(ratios)? - 1.0) * 100.0;
        writeln!(
            out,
            "{name}: {direct:.1} µs a token by the engine, {streamed:.1} µs by HTTP: {overhead:+.1} %"
        )?;
    }
    Ok(())
}

impl Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wall, cpu, clients } = self;
        write!(f, "{:.2} s, {:.2} s of the processor", wall.as_secs_f64(), cpu.as_secs_f64())?;
        if !clients.is_zero() {
            write!(f, " and {:.2} s for the clients", clients.as_secs_f64())?;
        }
        Ok(())
    }
}
