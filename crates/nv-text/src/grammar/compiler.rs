//! Makes grammars into automata over tokens, on threads of its own.

use std::fmt;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use llguidance::api::GrammarInit;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{InferenceCapabilities, TokEnv};
use llguidance::{Matcher, ParserFactory};

use super::matcher::{CompiledGrammar, refusal};
use super::vocabulary::Vocabulary;
use super::{Grammar, Source, limits};
use crate::error::{Error, Result};
use crate::reasoning::Reasoning;
use crate::tokenizer::Tokenizer;

/// Grammars that are compiled at once.
const NUM_THREADS: usize = 2;

/// Threads beyond those, each in the place of one that is at a grammar without end: nothing stops it, and it keeps a core.
const MAX_NUM_REPLACED: usize = 2;

/// Grammars that wait for a thread at most.
const MAX_NUM_WAITING: usize = 64;

/// How long a grammar may take to compile, its wait included, which is half of it at most.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// Bytes of a thread's stack: definitions that lead to each other are followed by recursion, and those of a grammar of the
/// largest size fit. What isn't used is never taken from the system.
const STACK_BYTES: usize = 256 << 20;

/// Compiles grammars over the tokens of one tokenizer. Clones are the same compiler.
///
/// To make one takes the time of going through all tokens several times. Compiling happens on threads of its own, two at
/// a time, which end with the last clone: whatever is asked for, a caller waits 10 seconds at most, and its stack is not
/// used. A grammar that takes longer is given up, but nothing stops its thread, which another one replaces; once there
/// are four such grammars, all others are refused with [`Error::Busy`] until one of them is done.
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
    pool: Arc<Pool>,
    time_limit: Duration,
}

struct Job {
    grammar: Grammar,
    reasoning: Reasoning,
    stage: Arc<Mutex<Stage>>,
    reply: SyncSender<Result<CompiledGrammar>>,
}

/// Where a job is, as its thread and whoever waits for it agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    Compiling,
    Done,
    /// Nobody waits any more.
    GivenUp,
}

type Compile = dyn Fn(&Grammar, Reasoning) -> Result<CompiledGrammar> + Send + Sync;

/// What the threads share.
struct Pool {
    compile: Box<Compile>,
    jobs: Mutex<Receiver<Job>>,
    threads: Mutex<Threads>,
}

#[derive(Debug, Default)]
struct Threads {
    num: usize,
    /// Those at a grammar that was given up.
    num_overdue: usize,
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

        let compile =
            move |grammar: &Grammar, reasoning| compile(&factory, grammar.source(reasoning)?, end);
        Self::start(Box::new(compile))
    }

    fn start(compile: Box<Compile>) -> Result<Self> {
        let (jobs, receiver) = mpsc::sync_channel(MAX_NUM_WAITING);
        let (waiting, threads) = (Mutex::new(receiver), Mutex::default());
        let pool = Arc::new(Pool { compile, jobs: waiting, threads });
        for _ in 0..NUM_THREADS {
            pool.start_thread(&mut lock(&pool.threads))
                .map_err(|source| Error::Spawn { source })?;
        }
        Ok(Self { jobs, pool, time_limit: TIME_LIMIT })
    }

    /// What `grammar` says of texts, which begin after the reasoning that `reasoning` lets them have. Blocks.
    ///
    /// # Errors
    /// [`Error::Grammar`] if it is malformed, impossible, too large or too complex; [`Error::Busy`] if others keep it from
    /// being compiled.
    pub fn compile(&self, grammar: &Grammar, reasoning: Reasoning) -> Result<CompiledGrammar> {
        if lock(&self.pool.threads).are_all_overdue() {
            return Err(Error::Busy);
        }
        let (reply, answer) = mpsc::sync_channel(1);
        let stage = Arc::new(Mutex::new(Stage::Waiting));
        let job = Job { grammar: grammar.clone(), reasoning, stage: Arc::clone(&stage), reply };
        self.jobs.try_send(job).map_err(|_| Error::Busy)?;
        // What has not begun by half of the time is not blamed for what others took.
        for is_last in [false, true] {
            if let Ok(result) = answer.recv_timeout(self.time_limit / 2) {
                return result;
            }
            let mut stage = lock(&stage);
            match *stage {
                Stage::Compiling if !is_last => {}
                Stage::Done => break,
                _ => return Err(self.give_up(&mut stage)),
            }
        }
        answer.recv().unwrap_or(Err(Error::Busy))
    }

    /// Leaves a job that is not done, with the reason, and puts a thread in the place of the one at it.
    fn give_up(&self, stage: &mut Stage) -> Error {
        let is_compiled = *stage == Stage::Compiling;
        *stage = Stage::GivenUp;
        if !is_compiled {
            return Error::Busy;
        }
        let mut threads = lock(&self.pool.threads);
        threads.num_overdue += 1;
        if threads.num < NUM_THREADS + MAX_NUM_REPLACED {
            // Without it the others go on.
            let _ = self.pool.start_thread(&mut threads);
        }
        Error::grammar("it takes too long to compile: ask for less")
    }
}

impl fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarCompiler").finish_non_exhaustive()
    }
}

impl Threads {
    fn are_all_overdue(&self) -> bool {
        self.num == self.num_overdue
    }

    /// Counts a thread whose grammar was given up, and is done after all. Returns whether it is still needed.
    fn come_back(&mut self) -> bool {
        self.num_overdue -= 1;
        let is_needed = self.num - self.num_overdue <= NUM_THREADS;
        self.num -= usize::from(!is_needed);
        is_needed
    }
}

impl Pool {
    fn start_thread(self: &Arc<Self>, threads: &mut Threads) -> io::Result<()> {
        let pool = Arc::clone(self);
        let builder = thread::Builder::new().name("nv-grammar".to_owned()).stack_size(STACK_BYTES);
        builder.spawn(move || pool.run())?;
        threads.num += 1;
        Ok(())
    }

    /// Compiles what comes, as long as there is anybody who may ask.
    fn run(&self) {
        loop {
            let job = lock(&self.jobs).recv();
            let Ok(Job { grammar, reasoning, stage, reply }) = job else { return };
            {
                let mut stage = lock(&stage);
                if *stage == Stage::GivenUp {
                    continue;
                }
                *stage = Stage::Compiling;
            }
            // Nothing that it leaves behind half done is used again.
            let compile = || (self.compile)(&grammar, reasoning);
            let result = panic::catch_unwind(AssertUnwindSafe(compile));
            let result =
                result.unwrap_or_else(|_| Err(Error::grammar("the compiler failed on it")));
            let mut stage = lock(&stage);
            if *stage == Stage::GivenUp {
                if !lock(&self.threads).come_back() {
                    return;
                }
                continue;
            }
            *stage = Stage::Done;
            // Whoever asked takes it, as it has not given up.
            let _ = reply.send(result);
        }
    }
}

fn compile(factory: &ParserFactory, source: Source, end: u32) -> Result<CompiledGrammar> {
    let Source { grammar, placeholders } = source;
    let env = factory.tok_env().clone();
    let internal =
        GrammarInit::Serialized(grammar).to_internal(Some(env), factory.limits().clone());
    let (grammar, mut lexer) = internal.map_err(|error| refusal(&error.to_string()))?;
    placeholders.put_into(&mut lexer)?;
    let parser = factory.create_parser_from_init_default(GrammarInit::Internal(grammar, lexer));
    let grammar = CompiledGrammar::new(Matcher::new(parser), end);
    // The first tokens tell whether there is any text at all; and they are the same for all that begin.
    grammar.matcher().next_tokens()?;
    Ok(grammar)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn grammars_without_end_neither_keep_others_out_nor_are_others_blamed() {
        let gate = Arc::new(Mutex::new(()));
        let passed = Arc::clone(&gate);
        // Some wait for the gate, and all end with this.
        let compiled = "the time has come";
        let compiler = GrammarCompiler::start(Box::new(move |grammar, _| {
            let Grammar::Lark(lark) = grammar else { panic!("{grammar:?}") };
            match &**lark {
                "endless" => drop(lock(&passed)),
                "panic" => panic!("in a compiler"),
                _ => {}
            }
            Err(Error::grammar(compiled))
        }));
        let compiler = compiler.unwrap();
        let threads = || {
            let Threads { num, num_overdue } = *lock(&compiler.pool.threads);
            (num, num_overdue)
        };
        let compile = |lark: &str, time_limit| {
            let compiler = GrammarCompiler { time_limit, ..compiler.clone() };
            let result = compiler.compile(&Grammar::Lark(lark.to_owned()), Reasoning::Off);
            result.map(drop).unwrap_err()
        };
        let check = |error: &Error, expected: &str| {
            assert!(error.to_string().ends_with(expected), "{error}");
        };
        let overdue = "it takes too long to compile: ask for less";
        let (hasty, patient) = (Duration::from_millis(60), Duration::from_millis(800));

        let closed = lock(&gate);
        thread::scope(|scope| {
            let endless = || compile("endless", patient);
            let endless = [scope.spawn(endless), scope.spawn(endless)];
            // Until both have begun, a thread is free.
            let error = loop {
                match compile("other", hasty) {
                    Error::Grammar { .. } => assert_eq!(threads(), (2, 0)),
                    error => break error,
                }
            };
            assert!(matches!(error, Error::Busy), "{error}");
            for endless in endless {
                check(&endless.join().unwrap(), overdue);
            }
        });
        assert_eq!(threads(), (4, 2));
        check(&compile("other", TIME_LIMIT), compiled);
        check(&compile("panic", TIME_LIMIT), "the compiler failed on it");
        check(&compile("endless", patient), overdue);
        check(&compile("endless", patient), overdue);
        assert_eq!(threads(), (4, 4));
        assert!(matches!(compile("other", TIME_LIMIT), Error::Busy));

        // They come to an end, and as many go on as there were.
        drop(closed);
        let start = Instant::now();
        while threads() != (2, 0) {
            assert!(start.elapsed() < Duration::from_secs(20), "{:?}", threads());
            thread::sleep(Duration::from_millis(5));
        }
        check(&compile("other", TIME_LIMIT), compiled);
    }
}
