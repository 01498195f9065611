//! The conversation of `benches/peers/compare.py` with an engine: a line of JSON asks, a line answers.
//!
//! `benches/peers/worker.py` says the same in Python. The clock starts when a request is read and is looked at when a
//! token is there.

use std::error::Error;
use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Steps take megabytes that come and go; `nv` has the same allocator, for that reason.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What an engine returns where it can fail.
pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What an engine is loaded with.
#[derive(Debug, Deserialize)]
pub struct Load {
    /// The folder of the checkpoint.
    pub model: PathBuf,
    /// What to compute in.
    pub dtype: Precision,
    /// Threads to compute with.
    pub threads: usize,
    /// Tokens that all prompts of one call and what continues them have at most.
    pub max_tokens: usize,
    /// Prompts of one call at most.
    pub max_requests: usize,
}

/// What to compute in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// float32.
    F32,
    /// bfloat16.
    Bf16,
    /// The weights are quantised to 8 bits.
    Q8,
    /// The weights are quantised to 4 bits.
    Q4,
}

/// What is asked.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Ask {
    Load(Load),
    Generate { prompts: Vec<Vec<u32>>, max_tokens: usize },
}

/// What an engine is told to continue, and when it did.
#[derive(Debug)]
pub struct Clock {
    start: Instant,
    first: Option<f64>,
}

impl Clock {
    fn start() -> Self {
        Self { start: Instant::now(), first: None }
    }

    /// Says that a token is there; the first call counts.
    pub fn token(&mut self) {
        self.first.get_or_insert_with(|| self.start.elapsed().as_secs_f64());
    }
}

/// An engine that can be compared.
pub trait Worker: Sized {
    /// Loads the model.
    ///
    /// # Errors
    /// What the engine says.
    fn load(load: &Load) -> Result<Self>;

    /// Continues all `prompts` greedily by `max_tokens` tokens each, whatever the tokens are.
    ///
    /// # Errors
    /// What the engine says.
    fn generate(
        &mut self,
        prompts: &[Vec<u32>],
        max_tokens: usize,
        clock: &mut Clock,
    ) -> Result<Vec<Vec<u32>>>;
}

#[derive(Debug, Default, Serialize)]
struct Answer {
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_token_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    token_ids: Vec<Vec<u32>>,
}

/// Answers what comes by stdin until it ends, after a first line that says that it is there.
///
/// # Errors
/// If stdin or stdout fail; what the engine says goes to the other side.
pub fn serve<W: Worker>() -> Result<()> {
    let mut worker = None;
    let mut out = io::stdout().lock();
    let mut say = |answer: &Answer| -> Result<()> {
        serde_json::to_writer(&mut out, answer)?;
        out.write_all(b"\n")?;
        Ok(out.flush()?)
    };
    say(&Answer::default())?;
    for line in io::stdin().lock().lines() {
        let ask = serde_json::from_str(&line?);
        let answer = ask.map_err(Into::into).and_then(|ask| answer::<W>(&mut worker, ask));
        let failed =
            |error: Box<dyn Error>| Answer { error: Some(error.to_string()), ..Answer::default() };
        say(&answer.unwrap_or_else(failed))?;
    }
    Ok(())
}

fn answer<W: Worker>(worker: &mut Option<W>, ask: Ask) -> Result<Answer> {
    let mut clock = Clock::start();
    let token_ids = match ask {
        Ask::Load(load) => {
            *worker = Some(W::load(&load)?);
            Vec::new()
        }
        Ask::Generate { prompts, max_tokens } => {
            let worker = worker.as_mut().ok_or("nothing is loaded")?;
            worker.generate(&prompts, max_tokens, &mut clock)?
        }
    };
    Ok(Answer {
        seconds: clock.start.elapsed().as_secs_f64(),
        first_token_seconds: clock.first,
        token_ids,
        ..Answer::default()
    })
}
