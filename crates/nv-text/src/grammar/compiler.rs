//! Makes grammars into automata over tokens, on threads of its own.

use std::fmt;
use std::io;
use std::panic;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{InferenceCapabilities, TokEnv};
use llguidance::{Matcher, ParserFactory, api::TopLevelGrammar};

use super::matcher::CompiledGrammar;
use super::vocabulary::Vocabulary;
use super::{Grammar, limits};
use crate::chat_parser::Reasoning;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// Grammars that are compiled at once. One that takes for ever leaves the others a thread.
const NUM_THREADS: usize = 2;

/// Grammars that wait for a thread at most.
const MAX_NUM_WAITING: usize = 64;

/// How long a grammar may take to compile, its wait included.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// Bytes of a thread's stack: definitions that lead to each other are followed by recursion, and those of a grammar of the
/// largest size fit. What isn't used is never taken from the system.
const STACK_BYTES: usize = 256 << 20;

/// Compiles grammars over the tokens of one tokenizer. Clones are the same compiler.
///
/// To make one takes the time of going through all tokens several times. Compiling happens on threads of its own, which
/// end with the last clone: whatever is asked for, a caller waits 10 seconds at most, and its stack is not used.
///
/// ```no_run
/// use nv_text::{Grammar, GrammarCompiler, Reasoning, Tokenizer};
///
/// let tokenizer = Tokenizer::from_file("assets/demo/tokenizer.json")?;
/// let compiler = GrammarCompiler::new(&tokenizer)?;
/// let grammar = compiler.compile(&Grammar::Regex("[0-9]+".to_owned()), Reasoning::Off)?;
/// let mut matcher = grammar.matcher();
/// assert!(!matcher.next_tokens()?.may_end);
/// for token_id in tokenizer.encode("42", false)? {
///     matcher.push(token_id)?;
/// }
/// assert!(matcher.next_tokens()?.may_end);
/// # Ok::<(), nv_text::Error>(())
/// ```
#[derive(Clone)]
pub struct GrammarCompiler {
    jobs: SyncSender<Job>,
    time_limit: Duration,
}

struct Job {
    source: TopLevelGrammar,
    deadline: Instant,
    reply: SyncSender<Result<CompiledGrammar>>,
}

impl GrammarCompiler {
    /// A compiler for texts of `tokenizer`.
    ///
    /// # Errors
    /// [`Error::Vocabulary`] if the tokens are of no use for this; [`Error::Spawn`] if the system refuses the threads.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let vocabulary = panic::catch_unwind(|| Vocabulary::new(tokenizer))
            .map_err(|_| Error::Vocabulary { reason: "a token is too long".to_owned() })?;
        let end = vocabulary.end();
        let env: TokEnv = Arc::new(vocabulary);
        let slices = SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices)
            .map_err(|error| Error::Vocabulary { reason: error.to_string() })?;
        factory.quiet();
        *factory.limits_mut() = limits::parser_limits();

        let (jobs, receiver) = mpsc::sync_channel(MAX_NUM_WAITING);
        let shared = Arc::new((factory, Mutex::new(receiver)));
        for _ in 0..NUM_THREADS {
            let shared = Arc::clone(&shared);
            let builder = thread::Builder::new().name("nv-grammar".to_owned());
            builder
                .stack_size(STACK_BYTES)
                .spawn(move || run(&shared.0, &shared.1, end))
                .map_err(|source: io::Error| Error::Spawn { source })?;
        }
        Ok(Self { jobs, time_limit: TIME_LIMIT })
    }

    #[cfg(test)]
    pub(super) fn with_time_limit(self, time_limit: Duration) -> Self {
        Self { time_limit, ..self }
    }

    /// What `grammar` says of texts, which begin after the reasoning that `reasoning` lets them have. Blocks.
    ///
    /// # Errors
    /// [`Error::Grammar`] if it is malformed, impossible, too large or too complex.
    pub fn compile(&self, grammar: &Grammar, reasoning: Reasoning) -> Result<CompiledGrammar> {
        let source = grammar.source(reasoning)?;
        let (reply, answer) = mpsc::sync_channel(1);
        let job = Job { source, deadline: Instant::now() + self.time_limit, reply };
        if self.jobs.try_send(job).is_err() {
            return Err(Error::grammar("too many others are being compiled: try again later"));
        }
        answer.recv_timeout(self.time_limit).unwrap_or_else(|error| {
            Err(Error::grammar(match error {
                RecvTimeoutError::Timeout => "it takes too long to compile: ask for less",
                RecvTimeoutError::Disconnected => "the compiler failed on it",
            }))
        })
    }
}

impl fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarCompiler").finish_non_exhaustive()
    }
}

/// Compiles what comes, as long as there is anybody who may ask.
fn run(factory: &ParserFactory, jobs: &Mutex<Receiver<Job>>, end: u32) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { source, deadline, reply }) = job else { return };
        if Instant::now() < deadline {
            // Whoever asked may have given up.
            let _ = reply.send(compile(factory, source, end));
        }
    }
}

fn compile(factory: &ParserFactory, source: TopLevelGrammar, end: u32) -> Result<CompiledGrammar> {
    let grammar = CompiledGrammar::new(Matcher::new(factory.create_parser(source)), end);
    // The first tokens tell whether there is any text at all; and they are the same for all that begin.
    grammar.matcher().next_tokens()?;
    Ok(grammar)
}
