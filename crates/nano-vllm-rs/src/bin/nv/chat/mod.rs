//! `nv chat`: a conversation in the terminal, or line by line in a pipe.
//!
//! `input` reads messages, `command` tells commands from them, `settings` holds what `/set` changes, `conversation` what was
//! said, `answer` has the model answer, `screen` shows it.

mod answer;
mod command;
mod conversation;
mod input;
mod screen;
mod settings;

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use anyhow::{Result, bail};
use nano_vllm_rs::config::GenerationConfig;
use nano_vllm_rs::engine::{Engine, EngineConfig, KvCacheMemory};
use nano_vllm_rs::model::Qwen3ForCausalLM;

use crate::args::ChatArgs;
use crate::interrupt::Stop;
use crate::model::{Model, PREFILL_CHUNK};
use crate::{copies, say};
use answer::Answerer;
use command::{Command, HELP};
use conversation::Conversation;
use input::{Input, Line};
use screen::Screen;
use settings::{NO_LIMIT, Settings};

/// How to talk with a larger one.
const LARGER: &str = "cargo run --release -- chat Qwen/Qwen3-0.6B";

/// Tokens of an answer at most if neither the user nor the model says, and the model may know no end.
const UNTAUGHT_MAX_TOKENS: usize = 128;

pub(crate) fn run(args: &ChatArgs, verbose: bool) -> Result<ExitCode> {
    let is_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    let model = Model::open_or_demo(&args.model, "its folder or id", LARGER)?;
    let text = || Ok((model.tokenizer()?, model.chat_template()?));
    let (text, qwen3) = model.load_beside(args.compute, text);
    let (tokenizer, template) = text?;
    let recommended = model.generation_config()?.with_eos_token(tokenizer.eos_token_id());
    let settings = settings(args, &recommended, template.is_some())?;
    let engine = engine(qwen3?)?;
    if verbose {
        say(copies::report(&model, args.compute));
        say(engine.kv_cache_size());
    }
    if template.is_none() {
        say(
            "The model has no chat template: it goes on with your lines instead of answering them.",
        );
    }
    if is_terminal {
        say("/help tells what there is to know, Ctrl-D ends.");
    }
    let session = Session {
        conversation: Conversation::new(template, args.system.clone()),
        settings,
        answerer: Answerer::new(engine, tokenizer),
        screen: Screen::new(),
        stop: Stop::listen(is_terminal)?,
        has_stats: args.stats || verbose,
    };
    session.run(Input::new(is_terminal)?, is_terminal)
}

/// An engine for one conversation, which may fill the model's context if there is memory for it.
fn engine(qwen3: Qwen3ForCausalLM) -> Result<Engine> {
    let config = EngineConfig {
        max_num_batched_tokens: PREFILL_CHUNK,
        max_num_seqs: 1,
        ..EngineConfig::default()
    };
    let context = qwen3.config().max_position_embeddings;
    let config = match config.kv_cache_size(&qwen3) {
        Ok(size) if size.num_tokens() <= context => config,
        // Where the system doesn't say what is free, the context is asked for too.
        _ => EngineConfig { kv_cache_memory: KvCacheMemory::Tokens(context), ..config },
    };
    Ok(Engine::new(qwen3, config)?)
}

fn settings(
    args: &ChatArgs,
    recommended: &GenerationConfig,
    has_template: bool,
) -> Result<Settings> {
    let untaught = if has_template { NO_LIMIT } else { UNTAUGHT_MAX_TOKENS };
    let max_tokens = args.max_tokens.or(recommended.max_new_tokens).unwrap_or(untaught);
    let params = args.sampling().params(recommended)?.with_max_tokens(max_tokens)?;
    Ok(Settings::new(params, args.seed))
}

struct Session {
    conversation: Conversation,
    settings: Settings,
    answerer: Answerer,
    screen: Screen,
    stop: Stop,
    has_stats: bool,
}

impl Session {
    /// Talks until the input ends. What goes wrong is said, and ends nothing; where nobody is there to see it, it
    /// shows in the exit code.
    fn run(mut self, mut input: Input, is_terminal: bool) -> Result<ExitCode> {
        let mut has_failed = false;
        loop {
            let text = match input.read()? {
                Line::Text(text) => text,
                Line::Interrupted => {
                    say("Ctrl-D or /quit ends.");
                    continue;
                }
                Line::End => break,
            };
            match command::parse(&text).and_then(|command| self.obey(command)) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) if crate::is_broken_pipe(error.as_ref()) => return Err(error),
                Err(error) => {
                    has_failed = true;
                    say(format_args!("error: {error:#}"));
                }
            }
        }
        Ok(if has_failed && !is_terminal { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    /// Returns whether the session goes on.
    fn obey(&mut self, command: Command<'_>) -> Result<bool> {
        match command {
            Command::Nothing => {}
            Command::Message(text) => self.answer(&text)?,
            Command::Help => say(HELP),
            Command::Reset => {
                self.conversation.reset();
                say("A new conversation begins.");
            }
            Command::System(text) => {
                let is_set = self.conversation.set_system(text);
                say(if is_set {
                    "The system prompt is set."
                } else {
                    "There is no system prompt."
                });
            }
            Command::ShowSettings => say(&self.settings),
            Command::Set { name, value } => say(self.settings.set(name, value)?),
            Command::Save(path) => {
                self.conversation.save(path)?;
                say(format_args!("The conversation is in {}.", path.display()));
            }
            Command::Quit => return Ok(false),
        }
        Ok(true)
    }

    fn answer(&mut self, text: &str) -> Result<()> {
        let Self { conversation, settings, answerer, screen, stop, has_stats } = self;
        conversation.ask(text);
        let answered = conversation.prompt(settings.enable_thinking()).and_then(|prompt| {
            stop.during(|stop| answerer.answer(&prompt, settings, screen, stop))
        });
        match answered {
            Ok(answered) => {
                if *has_stats {
                    say(&answered.stats);
                }
                conversation.take_answer(answered.answer);
                if let Some(note) = answered.note {
                    say(note);
                }
                Ok(())
            }
            Err(error) => {
                conversation.take_back();
                bail!("{error:#}; the message is taken back");
            }
        }
    }
}
