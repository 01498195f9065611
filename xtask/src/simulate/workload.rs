//! Who asks for what, and when: random, and the same for the same seed.
//!
//! Three kinds of requests. Lengths are log-normal, as those of people's texts are: many short ones and a long tail.
//! Arrivals are a Poisson process whose rate swings around its mean, so that there are hours with too much work.

use std::f64::consts::TAU;

use nv_engine::TokenId;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::whole;

/// The longest sequence, prompt and continuation together.
pub(super) const MAX_MODEL_LEN: usize = 32_768;

/// Seconds from one rush to the next.
const SWING_SECONDS: f64 = 900.0;

/// How far the rate swings, in parts of its mean.
const SWING: f64 = 0.6;

/// Texts that chats begin with, each as long as a prompt of an application is.
const NUM_SYSTEM_PROMPTS: usize = 40;
const SYSTEM_PROMPT_TOKENS: usize = 400;

/// Conversations that can be continued at any time.
const NUM_REMEMBERED: usize = 2_000;

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Code is completed while somebody types.
    Completion,
    /// Somebody reads along.
    Chat,
    /// Long texts that nobody waits for.
    Batch,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Completion, Self::Chat, Self::Batch];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Completion => "completion",
            Self::Chat => "chat",
            Self::Batch => "batch",
        }
    }

    pub(super) fn priority(self) -> i32 {
        match self {
            Self::Completion => -1,
            Self::Chat => 0,
            Self::Batch => 1,
        }
    }

    /// Medians of new prompt tokens and of tokens asked for.
    fn medians(self) -> (f64, f64) {
        match self {
            Self::Completion => (1_500.0, 25.0),
            Self::Chat => (250.0, 500.0),
            Self::Batch => (4_000.0, 250.0),
        }
    }
}

/// One request.
#[derive(Debug)]
pub(super) struct Request {
    /// Seconds from the start.
    pub(super) time: f64,
    pub(super) kind: Kind,
    pub(super) prompt_token_ids: Vec<TokenId>,
    /// Tokens after which the model ends its answer.
    pub(super) num_output_tokens: usize,
    /// The engine that has computed the conversation so far.
    pub(super) engine: Option<usize>,
}

/// A conversation as it stands.
#[derive(Debug)]
pub(super) struct Conversation {
    pub(super) token_ids: Vec<TokenId>,
    pub(super) engine: usize,
}

/// Requests in the order of their arrival, without end.
#[derive(Debug)]
pub(super) struct Workload {
    rng: ChaCha8Rng,
    /// Requests a second, in the mean.
    rate: f64,
    time: f64,
    system_prompts: Vec<Vec<TokenId>>,
    conversations: Vec<Conversation>,
}

impl Workload {
    pub(super) fn new(seed: u64, rate: f64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut prompt = || (0..SYSTEM_PROMPT_TOKENS).map(|_| rng.next_u32()).collect();
        let system_prompts = (0..NUM_SYSTEM_PROMPTS).map(|_| prompt()).collect();
        Self { rng, rate, time: 0.0, system_prompts, conversations: Vec::new() }
    }

    /// A conversation that may go on.
    pub(super) fn remember(&mut self, conversation: Conversation) {
        if self.conversations.len() < NUM_REMEMBERED {
            self.conversations.push(conversation);
        } else {
            let place = self.below(NUM_REMEMBERED);
            self.conversations[place] = conversation;
        }
    }

    pub(super) fn next_request(&mut self) -> Request {
        let rate = self.rate * (1.0 + SWING * (TAU * self.time / SWING_SECONDS).sin());
        self.time += -self.uniform().ln() / rate;
        let kind = match self.below(10) {
            0..3 => Kind::Completion,
            3..9 => Kind::Chat,
            _ => Kind::Batch,
        };
        let (new_tokens, output_tokens) = kind.medians();
        let (mut prompt_token_ids, engine) = self.beginning(kind);
        let num_new_tokens = self.log_normal(new_tokens);
        prompt_token_ids.extend((0..num_new_tokens).map(|_| self.rng.next_u32()));
        prompt_token_ids.truncate(MAX_MODEL_LEN - 1);
        let num_output_tokens =
            self.log_normal(output_tokens).min(MAX_MODEL_LEN - prompt_token_ids.len());
        Request { time: self.time, kind, prompt_token_ids, num_output_tokens, engine }
    }

    /// What the prompt has in common with others.
    fn beginning(&mut self, kind: Kind) -> (Vec<TokenId>, Option<usize>) {
        if kind != Kind::Chat {
            return (Vec::new(), None);
        }
        let goes_on = self.uniform() < 0.5 && !self.conversations.is_empty();
        if goes_on {
            let place = self.below(self.conversations.len());
            let Conversation { token_ids, engine } = self.conversations.swap_remove(place);
            return (token_ids, Some(engine));
        }
        // A few applications have most users.
        let which = self.below(NUM_SYSTEM_PROMPTS).min(self.below(NUM_SYSTEM_PROMPTS));
        (self.system_prompts[which].clone(), None)
    }

    /// A length around `median`, of which two in three are within a factor of 2.5.
    fn log_normal(&mut self, median: f64) -> usize {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        let normal = radius * (TAU * self.uniform()).cos();
        whole((median * (0.92 * normal).exp()).clamp(1.0, MAX_MODEL_LEN as f64))
    }

    /// A number above 0 and up to 1.
    fn uniform(&mut self) -> f64 {
        (f64::from(self.rng.next_u32()) + 1.0) / 4_294_967_296.0
    }

    fn below(&mut self, end: usize) -> usize {
        self.rng.next_u32() as usize % end
    }
}
