//! What all handlers share: the engine, the model's text, the limits, the counts.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nv_config::GenerationConfig;
use nv_engine::{Engine, EngineHandle, Model};
use nv_text::{ChatTemplate, GrammarCompiler, Tokenizer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::counts::Counts;
use crate::error::{Error, Result};

/// The conversation of a model that brings no chat template: each message in a line of its own, which the answer goes on
/// with, so that the next turn finds what this one has computed.
const PLAIN_TEMPLATE: &str = "{% for message in messages %}\
     {% if not loop.first and message.role != 'assistant' %}{{ '\\n' }}{% endif %}{{ message.content }}{% endfor %}";

/// The text side of a model, and what its makers recommend.
#[derive(Debug, Clone)]
pub struct ServedModel {
    /// Turns text into tokens and back.
    pub tokenizer: Tokenizer,
    /// Turns conversations into text. Without one, the model goes on with the messages, each in a line of its own.
    pub chat_template: Option<ChatTemplate>,
    /// How tokens are chosen where a request says nothing, and which ones end a text; so does the tokenizer's `eos_token`.
    pub generation_config: GenerationConfig,
}

/// How the server meets its clients.
#[derive(Clone)]
pub struct ServerConfig {
    /// The names that requests may call the model by; answers bear the first.
    pub served_model_names: Vec<String>,
    /// The keys of which each request needs one; with none, nobody is asked.
    pub api_keys: Vec<String>,
    /// The origins whose pages may use the server from a browser, `*` for all; by default none but its own.
    pub cors_origins: Vec<String>,
    /// Bytes of a request's body at most. Default 16 MiB.
    pub max_body_bytes: usize,
    /// Sequences that wait, beyond those that the engine runs, before requests are refused. Default 256.
    pub max_num_waiting: usize,
    /// How long a client may take to send the head of a request, and again for its body; a connection that asks for nothing is
    /// closed after as long. Default 30 s.
    pub read_timeout: Duration,
    /// How long a client may read nothing while there is something for it to read, before its connection is closed and its
    /// request ended. Default 60 s.
    pub write_timeout: Duration,
    /// How long a request may take; by default as long as it wants.
    pub request_timeout: Option<Duration>,
}

impl ServerConfig {
    /// Usual settings for a model of that name.
    pub fn new(served_model_name: impl Into<String>) -> Self {
        Self {
            served_model_names: vec![served_model_name.into()],
            api_keys: Vec::new(),
            cors_origins: Vec::new(),
            max_body_bytes: 16 << 20,
            max_num_waiting: 256,
            read_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_mins(1),
            request_timeout: None,
        }
    }
}

impl fmt::Debug for ServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the keys.
        f.debug_struct("ServerConfig")
            .field("served_model_names", &self.served_model_names)
            .field("num_api_keys", &self.api_keys.len())
            .field("cors_origins", &self.cors_origins)
            .field("max_body_bytes", &self.max_body_bytes)
            .field("max_num_waiting", &self.max_num_waiting)
            .field("read_timeout", &self.read_timeout)
            .field("write_timeout", &self.write_timeout)
            .field("request_timeout", &self.request_timeout)
            .finish()
    }
}

/// A server without its socket. Clones are the same server.
#[derive(Debug, Clone)]
pub struct Server(Arc<Inner>);

struct Inner {
    engine: EngineHandle,
    model: ServedModel,
    /// Of the model, or the one for models without.
    chat_template: ChatTemplate,
    /// Made when the first answer is to be held to a form: it takes time and memory.
    grammar_compiler: Mutex<Option<GrammarCompiler>>,
    config: ServerConfig,
    max_model_len: usize,
    block_size: usize,
    num_blocks: u32,
    /// One permit for each sequence that may run or wait.
    room: Arc<Semaphore>,
    num_sequences: u32,
    is_draining: AtomicBool,
    counts: Mutex<Counts>,
    created: u64,
}

impl Server {
    /// Starts `engine` on a thread of its own, to serve `model`.
    ///
    /// # Errors
    /// [`Error::Engine`] if the system refuses the thread; [`Error::Setting`] if the model has no name.
    pub fn new<M: Model + Send + 'static>(
        engine: Engine<M>,
        model: ServedModel,
        config: ServerConfig,
    ) -> Result<Self> {
        if config.served_model_names.is_empty() {
            let (setting, expected) = ("served_model_names", "at least one name");
            return Err(Error::Setting { setting, expected, found: "none".to_owned() });
        }
        let limits = engine.scheduler_config().clone();
        let num_sequences = limits.max_num_seqs.saturating_add(config.max_num_waiting);
        let num_sequences = u32::try_from(num_sequences.min(Semaphore::MAX_PERMITS));
        let num_sequences = num_sequences.unwrap_or(u32::MAX);
        let chat_template = match &model.chat_template {
            Some(template) => template.clone(),
            None => ChatTemplate::new(PLAIN_TEMPLATE)?,
        };
        let eos_token_id = model.tokenizer.eos_token_id();
        let generation_config = model.generation_config.with_eos_token(eos_token_id);
        let model = ServedModel { generation_config, ..model };
        // The thread ends when it is told to, or when the last handle is gone.
        let (engine, _thread) = EngineHandle::spawn(engine)?;
        Ok(Self(Arc::new(Inner {
            engine,
            model,
            chat_template,
            grammar_compiler: Mutex::default(),
            config,
            max_model_len: limits.max_model_len,
            block_size: limits.block_size,
            num_blocks: limits.num_blocks,
            room: Arc::new(Semaphore::new(num_sequences as usize)),
            num_sequences,
            is_draining: AtomicBool::new(false),
            counts: Mutex::default(),
            created: unix_time(),
        })))
    }

    /// Has the server refuse new requests from now on; those that it has go on. Its `/ready` says so.
    pub fn drain(&self) {
        self.0.is_draining.store(true, Ordering::Relaxed);
    }

    /// Waits until all requests have ended, and ends the engine's thread.
    pub async fn shut_down(&self) {
        self.drain();
        self.0.engine.shut_down().await;
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.0.is_draining.load(Ordering::Relaxed)
    }

    pub(crate) fn engine(&self) -> &EngineHandle {
        &self.0.engine
    }

    pub(crate) fn config(&self) -> &ServerConfig {
        &self.0.config
    }

    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        &self.0.model.tokenizer
    }

    pub(crate) fn generation_config(&self) -> &GenerationConfig {
        &self.0.model.generation_config
    }

    pub(crate) fn chat_template(&self) -> &ChatTemplate {
        &self.0.chat_template
    }

    /// What grammars are compiled by. Takes a while the first time.
    pub(crate) fn grammar_compiler(&self) -> Result<GrammarCompiler> {
        let compiler = &self.0.grammar_compiler;
        let mut compiler = compiler.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(compiler) = &*compiler {
            return Ok(compiler.clone());
        }
        Ok(compiler.insert(GrammarCompiler::new(self.tokenizer())?).clone())
    }

    /// Whether the model brings a chat template, which can show tools.
    pub(crate) fn has_chat_template(&self) -> bool {
        self.0.model.chat_template.is_some()
    }

    /// Tokens of prompt and answer together at most.
    pub(crate) fn max_model_len(&self) -> usize {
        self.0.max_model_len
    }

    /// Tokens a block, and blocks of the KV cache.
    pub(crate) fn kv_cache(&self) -> (usize, u32) {
        (self.0.block_size, self.0.num_blocks)
    }

    /// When the server was made, in seconds since 1970.
    pub(crate) fn created(&self) -> u64 {
        self.0.created
    }

    /// The name that answers bear.
    pub(crate) fn model_name(&self) -> &str {
        &self.0.config.served_model_names[0]
    }

    /// The model that a request names; the one that there is, if it names none or, as vLLM has it, an empty one.
    pub(crate) fn check_model(&self, model: Option<&str>) -> Result<()> {
        let names = &self.config().served_model_names;
        match model {
            Some(model) if !model.is_empty() && !names.iter().any(|name| name == model) => {
                let served = names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>();
                Err(Error::UnknownModel { model: model.to_owned(), served: served.join(", ") })
            }
            _ => Ok(()),
        }
    }

    /// Room for so many sequences, until the permit is dropped. A request for more than there ever is gets all of it.
    pub(crate) fn admit(&self, num_sequences: usize) -> Result<OwnedSemaphorePermit> {
        if self.is_draining() {
            return Err(Error::Draining);
        }
        let max = self.0.num_sequences;
        let wanted = u32::try_from(num_sequences).unwrap_or(max).min(max);
        let permit = self.0.room.clone().try_acquire_many_owned(wanted);
        permit.map_err(|_| Error::Overloaded { num_sequences: max as usize })
    }

    /// What the server counts itself.
    pub(crate) fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs what takes the processor for a while, so that nobody else's answer waits for it.
    pub(crate) async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let server = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&server)).await;
        done.unwrap_or(Err(Error::Panic))
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("config", &self.config)
            .field("max_model_len", &self.max_model_len)
            .finish_non_exhaustive()
    }
}

/// Seconds since 1970: a date to show, by which nothing is measured.
#[expect(clippy::disallowed_methods, reason = "the one place that wants the date")]
pub(crate) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
