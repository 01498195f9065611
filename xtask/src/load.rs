//! `cargo xtask load`: many streaming clients at once, some of which go away in the middle, and what they got.

use std::io::Write;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::process::private_bytes;
use crate::served::Served;
use crate::streaming::{self, Ended};

/// How long the server may take to be done with what the clients left.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many clients there are, and for how long.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Clients at once.
    #[arg(long, default_value_t = 200)]
    clients: usize,
    /// For how long new requests are made.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Tokens of an answer at most.
    #[arg(long, default_value_t = 128)]
    max_tokens: u64,
    /// Of a hundred requests, those whose client goes away in the middle.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(0..=100))]
    disconnects: u64,
    /// Seed of prompts, lengths and disconnects.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Profile that the server is built with.
    #[arg(long, default_value = "release")]
    profile: String,
}

/// What one client saw.
#[derive(Debug, Default)]
struct Seen {
    num_done: usize,
    num_left: usize,
    num_refused: usize,
    num_tokens: usize,
    first: Vec<Duration>,
    gaps: Vec<Duration>,
    errors: Vec<String>,
}

/// Starts a server, puts it under load, and prints what came of it.
///
/// # Errors
/// If the server doesn't start, a client sees an error other than 429, or blocks of the KV cache stay in use.
///
/// # Panics
/// If a client's thread does.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    let options = ["serve", "--port", "0", "--kv-cache-memory", "64MiB", "--log-level", "warn"];
    let server = Served::start(["--bin", "nv"], &args.profile, &options)?;
    let start = Instant::now();
    let is_over = AtomicBool::new(false);
    let (seen, halfway) = thread::scope(|scope| {
        let (server, is_over) = (&server, &is_over);
        let clients: Vec<_> = (0..args.clients as u64)
            .map(|index| scope.spawn(move || client(args, index, &server.address, is_over)))
            .collect();
        let half = Duration::from_secs(args.seconds) / 2;
        thread::sleep(half);
        // By now every block of the KV cache was written to: what comes after is growth.
        let halfway = private_bytes(server.id());
        thread::sleep(half);
        is_over.store(true, Ordering::Relaxed);
        let join = |client: thread::ScopedJoinHandle<'_, Seen>| {
            client.join().expect("a client does not panic")
        };
        (clients.into_iter().map(join).collect(), halfway)
    });
    let elapsed = start.elapsed();
    wait_until_idle(&server.address)?;
    report(seen, elapsed, [halfway, private_bytes(server.id())], out)
}

/// Makes requests one after the other.
fn client(args: &Args, index: u64, address: &str, is_over: &AtomicBool) -> Seen {
    let mut random = ChaCha8Rng::seed_from_u64(args.seed ^ index << 32);
    let mut seen = Seen::default();
    while !is_over.load(Ordering::Relaxed) {
        let max_tokens = 1 + random.next_u64() % args.max_tokens.max(1);
        let leaves = random.next_u64() % 100 < args.disconnects;
        let leave_after = if leaves { random.next_u64() % max_tokens } else { u64::MAX };
        match exchange(address, max_tokens, leave_after, random.next_u64(), &mut seen) {
            Ok(Ended::Done) => seen.num_done += 1,
            Ok(Ended::Left) => seen.num_left += 1,
            Ok(Ended::Refused) => {
                seen.num_refused += 1;
                thread::sleep(Duration::from_millis(500));
            }
            Err(error) => {
                seen.errors.push(format!("{error:#}"));
                thread::sleep(Duration::from_millis(500));
            }
        }
    }
    seen
}

/// Makes one request; goes away after so many tokens.
fn exchange(
    address: &str,
    max_tokens: u64,
    leave_after: u64,
    seed: u64,
    seen: &mut Seen,
) -> Result<Ended> {
    let prompt = match seed % 4 {
        0 => "In the beginning",
        1 => "And it came to pass",
        2 => "The LORD",
        _ => "Behold,",
    };
    let body = serde_json::json!({
        "prompt": prompt, "max_tokens": max_tokens, "seed": seed >> 1, "stream": true, "temperature": 1, "ignore_eos": true,
    });
    let start = Instant::now();
    let (mut last, mut num_tokens) = (None, 0);
    streaming::stream(address, &body, |_| {
        let now = Instant::now();
        match last.replace(now) {
            None => seen.first.push(now - start),
            Some(last) => seen.gaps.push(now - last),
        }
        num_tokens += 1;
        seen.num_tokens += 1;
        if num_tokens > leave_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
}

/// Waits until no block of the KV cache is in use.
fn wait_until_idle(address: &str) -> Result<()> {
    let start = Instant::now();
    loop {
        let page = streaming::get(address, "/metrics")?;
        let usage = page.lines().find(|line| line.starts_with("vllm:kv_cache_usage_perc"));
        let usage = usage.context("the metrics do not tell the usage of the KV cache")?;
        if usage.ends_with(" 0") {
            return Ok(());
        }
        ensure!(start.elapsed() < PATIENCE, "blocks stay in use: {usage}");
        thread::sleep(Duration::from_millis(100));
    }
}

fn report(
    seen: Vec<Seen>,
    elapsed: Duration,
    memory: [Option<u64>; 2],
    out: &mut dyn Write,
) -> Result<()> {
    let num_clients = seen.len();
    let mut all = Seen::default();
    for seen in seen {
        all.num_done += seen.num_done;
        all.num_left += seen.num_left;
        all.num_refused += seen.num_refused;
        all.num_tokens += seen.num_tokens;
        all.first.extend(seen.first);
        all.gaps.extend(seen.gaps);
        all.errors.extend(seen.errors);
    }
    let Seen { num_done, num_left, num_refused, num_tokens, .. } = all;
    writeln!(out, "{num_clients} clients in {:.1} s", elapsed.as_secs_f64())?;
    writeln!(
        out,
        "requests: {num_done} done, {num_left} left by their clients, {num_refused} refused (429)"
    )?;
    let speed = num_tokens as f64 / elapsed.as_secs_f64();
    writeln!(out, "tokens: {num_tokens}, {speed:.0} a second")?;
    for (name, mut times) in [("first token", all.first), ("between tokens", all.gaps)] {
        times.sort_unstable();
        let at =
            |part: usize| times.get((times.len() * part / 100).min(times.len().saturating_sub(1)));
        let millis = |part| at(part).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3);
        writeln!(out, "{name}: p50 {:.1} ms, p99 {:.1} ms", millis(50), millis(99))?;
    }
    if let [Some(halfway), Some(after)] =
        memory.map(|bytes| bytes.map(|bytes| bytes as f64 / f64::from(1 << 20)))
    {
        writeln!(out, "private memory: {halfway:.1} MiB halfway, {after:.1} MiB after")?;
    }
    writeln!(out, "KV usage: back to 0; errors: {}", all.errors.len())?;
    match all.errors.first() {
        Some(error) => bail!("{} errors, the first: {error}", all.errors.len()),
        None => Ok(()),
    }
}
