//! What a completion is answered: whole, or in chunks.

use nv_engine::{TokenId, TokenLogprobs};
use serde::Serialize;
use serde_json::Value;

use crate::choice::{Finish, Piece};
use crate::generation::Usage;
use crate::ids::unique_id;
use crate::logprobs::{CompletionLogprobs, Spelling, prompt_logprobs};
use crate::params::Delivery;
use crate::prompt::Prompt;
use crate::server::{Server, unix_time};
use crate::sse::{self, Chunks};
use crate::usage::{ChunkUsage, StopReason};

/// What answers hold.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the request")]
pub(crate) struct Form {
    /// Continuations of each prompt, which come one after the other.
    pub(crate) n: usize,
    pub(crate) prompts: Vec<Prompt>,
    /// Whether the text begins with the prompt.
    pub(crate) echo: bool,
    pub(crate) has_logprobs: bool,
    pub(crate) has_prompt_logprobs: bool,
    /// Whether what is generated is left out.
    pub(crate) is_only_prompt: bool,
    pub(crate) return_token_ids: bool,
    pub(crate) return_tokens_as_token_ids: bool,
}

/// Answers that are put together, to be sent whole.
#[derive(Debug)]
pub(crate) struct CompletionAnswers {
    server: Server,
    form: Form,
    answers: Vec<Answer>,
    /// Those of each prompt.
    prompt_logprobs: Vec<Vec<TokenLogprobs>>,
}

#[derive(Debug, Default)]
struct Answer {
    pieces: Vec<Piece>,
    finish: Option<Finish>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Completion<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<CompletionChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<ChunkUsage>,
}

#[derive(Debug, Serialize)]
struct CompletionChoice {
    index: usize,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<StopReason>,
    prompt_logprobs: Option<Vec<Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<TokenId>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<TokenId>>,
}

impl Form {
    fn prompt(&self, index: usize) -> &Prompt {
        &self.prompts[index / self.n]
    }

    fn num_choices(&self) -> usize {
        self.n * self.prompts.len()
    }

    /// The tokens of the prompt, if they are asked for.
    fn prompt_token_ids(&self, index: usize) -> Option<Vec<TokenId>> {
        self.return_token_ids.then(|| self.prompt(index).token_ids.clone())
    }

    fn spelling<'a>(&self, server: &'a Server) -> Spelling<'a> {
        let as_token_ids = self.return_tokens_as_token_ids;
        Spelling { tokenizer: server.tokenizer(), as_token_ids }
    }

    /// Leaves nothing of what is generated where only the prompt is asked for.
    fn drop_unasked(&self, piece: &mut Piece) {
        if self.is_only_prompt {
            piece.text.clear();
            piece.tokens.clear();
            piece.token_ids.clear();
            piece.finish = piece.finish.take().map(|_| Finish::Length);
        }
    }

    fn usage(&self, usage: Usage) -> Usage {
        let num_completion_tokens =
            if self.is_only_prompt { 0 } else { usage.num_completion_tokens };
        Usage { num_completion_tokens, ..usage }
    }

    /// Characters before the continuation.
    fn offset(&self, index: usize) -> usize {
        if self.echo { self.prompt(index).text.chars().count() } else { 0 }
    }
}

impl CompletionAnswers {
    pub(crate) fn new(server: Server, form: Form) -> Self {
        Self {
            answers: (0..form.num_choices()).map(|_| Answer::default()).collect(),
            prompt_logprobs: form.prompts.iter().map(|_| Vec::new()).collect(),
            server,
            form,
        }
    }

    pub(crate) fn push(&mut self, mut piece: Piece) {
        let index = piece.index;
        self.prompt_logprobs[index / self.form.n].append(&mut piece.prompt_logprobs);
        self.form.drop_unasked(&mut piece);
        let answer = &mut self.answers[index];
        answer.finish = piece.finish.take().or(answer.finish.take());
        answer.pieces.push(piece);
    }

    pub(crate) fn finish(self, usage: Usage) -> Value {
        let choices = self.answers.iter().enumerate();
        let usage = self.form.usage(usage);
        serde_json::json!(Completion {
            id: &unique_id("cmpl-"),
            object: "text_completion",
            created: unix_time(),
            model: self.server.model_name(),
            choices: choices.map(|(index, answer)| self.choice(index, answer)).collect(),
            usage: Some(ChunkUsage::Tokens(usage.into())),
        })
    }

    fn choice(&self, index: usize, answer: &Answer) -> CompletionChoice {
        let (form, spelling) = (&self.form, self.form.spelling(&self.server));
        let prompt = form.prompt(index);
        let of_prompt = &self.prompt_logprobs[index / form.n];
        let echoed = if form.echo { &*prompt.text } else { "" };
        let texts = [echoed].into_iter().chain(answer.pieces.iter().map(|piece| &*piece.text));
        let logprobs = form.has_logprobs.then(|| {
            let mut logprobs = CompletionLogprobs::default();
            if form.echo {
                logprobs.extend_prompt(prompt, of_prompt, spelling);
            }
            for piece in &answer.pieces {
                logprobs.extend(&piece.tokens, form.offset(index), spelling);
            }
            logprobs
        });
        CompletionChoice {
            index,
            text: texts.collect(),
            logprobs,
            finish_reason: answer.finish.as_ref().map(Finish::reason),
            stop_reason: answer.finish.as_ref().and_then(StopReason::of),
            prompt_logprobs: form
                .has_prompt_logprobs
                .then(|| prompt_logprobs(of_prompt, spelling.tokenizer)),
            prompt_token_ids: form.prompt_token_ids(index),
            token_ids: form.return_token_ids.then(|| {
                answer.pieces.iter().flat_map(|piece| &piece.token_ids).copied().collect()
            }),
        }
    }
}

/// Answers as chunks.
#[derive(Debug)]
pub(crate) struct CompletionChunks {
    server: Server,
    form: Form,
    delivery: Delivery,
    id: String,
    created: u64,
}

impl CompletionChunks {
    pub(crate) fn new(server: Server, form: Form, delivery: Delivery) -> Self {
        Self { server, form, delivery, id: unique_id("cmpl-"), created: unix_time() }
    }

    fn chunk(&self, choice: Option<CompletionChoice>, usage: Usage) -> String {
        let usage = self.form.usage(usage);
        let usage = ChunkUsage::new(usage, choice.is_none(), self.delivery);
        sse::to_json(&Completion {
            id: &self.id,
            object: "text_completion",
            created: self.created,
            model: self.server.model_name(),
            choices: choice.into_iter().collect(),
            usage,
        })
    }
}

impl Chunks for CompletionChunks {
    fn begin(&mut self, usage: Usage) -> Vec<String> {
        let form = &self.form;
        let is_told = form.echo || form.return_token_ids;
        let prompt = |index| CompletionChoice {
            index,
            text: if form.echo { form.prompt(index).text.clone() } else { String::new() },
            logprobs: None,
            finish_reason: None,
            stop_reason: None,
            prompt_logprobs: None,
            prompt_token_ids: form.prompt_token_ids(index),
            token_ids: form.return_token_ids.then(Vec::new),
        };
        let told = 0..if is_told { form.num_choices() } else { 0 };
        told.map(|index| self.chunk(Some(prompt(index)), usage)).collect()
    }

    fn push(&mut self, mut piece: Piece, usage: Usage) -> Vec<String> {
        self.form.drop_unasked(&mut piece);
        let Piece { index, text, tokens, token_ids, finish, .. } = piece;
        let logprobs = (self.form.has_logprobs && !tokens.is_empty()).then(|| {
            let mut logprobs = CompletionLogprobs::default();
            let spelling = self.form.spelling(&self.server);
            logprobs.extend(&tokens, self.form.offset(index), spelling);
            logprobs
        });
        let token_ids = self.form.return_token_ids.then_some(token_ids);
        let has_tokens =
            logprobs.is_some() || token_ids.as_ref().is_some_and(|ids| !ids.is_empty());
        let text = (!text.is_empty() || has_tokens).then_some(CompletionChoice {
            index,
            text,
            logprobs,
            finish_reason: None,
            stop_reason: None,
            prompt_logprobs: None,
            prompt_token_ids: None,
            token_ids,
        });
        let end = finish.map(|finish| CompletionChoice {
            index,
            text: String::new(),
            logprobs: None,
            finish_reason: Some(finish.reason()),
            stop_reason: StopReason::of(&finish),
            prompt_logprobs: None,
            prompt_token_ids: None,
            token_ids: self.form.return_token_ids.then(Vec::new),
        });
        text.into_iter().chain(end).map(|choice| self.chunk(Some(choice), usage)).collect()
    }

    fn end(&mut self, usage: Usage) -> Vec<String> {
        let last = self.delivery.include_usage.then(|| self.chunk(None, usage));
        last.into_iter().collect()
    }
}
