//! What a chat is answered: whole, or in chunks.

use nv_engine::{TokenId, TokenLogprobs};
use nv_text::{ChatAnswer, ChatDelta, ChatParser};
use serde::Serialize;
use serde_json::Value;

use crate::choice::{Finish, Piece};
use crate::generation::Usage;
use crate::ids::unique_id;
use crate::logprobs::{ChatLogprobs, Spelling, prompt_logprobs};
use crate::params::Delivery;
use crate::server::{Server, unix_time};
use crate::sse::Chunks;
use crate::usage::{ChunkUsage, StopReason, UsageJson};

/// What answers are taken apart by, and what they hold.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the request")]
pub(crate) struct Form {
    /// For an answer that has not begun.
    pub(crate) parser: ChatParser,
    /// Whether an answer may call several tools; else calls after the first are left out.
    pub(crate) parallel_tool_calls: bool,
    /// Why an answer ends that calls tools, if nothing cuts it.
    pub(crate) call_finish_reason: &'static str,
    pub(crate) has_logprobs: bool,
    pub(crate) has_prompt_logprobs: bool,
    pub(crate) return_tokens_as_token_ids: bool,
    /// The tokens of the prompt, if those of answers are asked for too.
    pub(crate) prompt_token_ids: Option<Vec<TokenId>>,
}

/// Answers that are put together, to be sent whole.
#[derive(Debug)]
pub(crate) struct ChatAnswers {
    server: Server,
    has_prompt_logprobs: bool,
    prompt_logprobs: Vec<TokenLogprobs>,
    as_token_ids: bool,
    prompt_token_ids: Option<Vec<TokenId>>,
    answers: Vec<Answer>,
}

#[derive(Debug)]
struct Answer {
    deltas: Deltas,
    gathered: ChatAnswer,
    logprobs: Option<ChatLogprobs>,
    /// If they are asked for.
    token_ids: Option<Vec<TokenId>>,
    finish: Option<Finish>,
}

/// An answer's deltas, from pieces of text.
#[derive(Debug)]
struct Deltas {
    /// `None` once the answer has ended.
    parser: Option<ChatParser>,
    parallel_tool_calls: bool,
    call_finish_reason: &'static str,
    calls_tools: bool,
    /// Whether the answer ended where it may have gone on with a call, or another tag.
    is_cut: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct ChatCompletion {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    choices: Vec<ChatChoice>,
    usage: UsageJson,
    prompt_logprobs: Option<Vec<Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<TokenId>>,
}

#[derive(Debug, Serialize)]
struct ChatChoice {
    index: usize,
    message: Message,
    logprobs: Option<ChatLogprobs>,
    finish_reason: &'static str,
    stop_reason: Option<StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<TokenId>>,
}

#[derive(Debug, Serialize)]
struct Message {
    role: &'static str,
    content: Option<String>,
    refusal: Option<()>,
    #[serde(flatten)]
    reasoning: Option<ReasoningText>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

/// What the model thought, by both names that clients look for.
#[derive(Debug, Serialize)]
struct ReasoningText {
    reasoning_content: String,
    reasoning: String,
}

impl ReasoningText {
    fn new(text: String) -> Self {
        Self { reasoning_content: text.clone(), reasoning: text }
    }
}

#[derive(Debug, Serialize)]
struct ToolCall {
    id: String,
    r#type: &'static str,
    function: Function,
}

#[derive(Debug, Serialize)]
struct Function {
    name: String,
    arguments: String,
}

impl Deltas {
    fn new(form: &Form) -> Self {
        Self {
            parser: Some(form.parser.clone()),
            parallel_tool_calls: form.parallel_tool_calls,
            call_finish_reason: form.call_finish_reason,
            calls_tools: false,
            is_cut: false,
        }
    }

    /// What becomes certain with a piece; its last one ends the answer.
    fn push(&mut self, piece: &Piece) -> Vec<ChatDelta> {
        let Some(parser) = &mut self.parser else { return Vec::new() };
        let mut deltas = parser.push(&piece.text);
        if let Some(finish) = &piece.finish
            && let Some(parser) = self.parser.take()
        {
            self.is_cut = match finish {
                Finish::Eos => false,
                Finish::StopToken(_) | Finish::StopString(_) => parser.is_in_tool_call(),
                Finish::Length => true,
            };
            deltas.extend(if self.is_cut { parser.cut() } else { parser.finish() });
        }
        if !self.parallel_tool_calls {
            deltas.retain(|delta| match delta {
                ChatDelta::ToolCallName { index, .. }
                | ChatDelta::ToolCallArguments { index, .. } => *index == 0,
                ChatDelta::Reasoning(_) | ChatDelta::Content(_) => true,
            });
        }
        let is_call = |delta: &ChatDelta| matches!(delta, ChatDelta::ToolCallName { .. });
        self.calls_tools |= deltas.iter().any(is_call);
        deltas
    }

    fn finish_reason(&self, finish: &Finish) -> &'static str {
        match finish.reason() {
            // Nobody should run a call that a stop string has cut.
            "stop" if self.calls_tools && !self.is_cut => self.call_finish_reason,
            reason => reason,
        }
    }
}

impl ChatAnswers {
    pub(crate) fn new(server: Server, form: Form, num_choices: usize) -> Self {
        let answer = || Answer {
            deltas: Deltas::new(&form),
            gathered: ChatAnswer::default(),
            logprobs: form.has_logprobs.then(ChatLogprobs::default),
            token_ids: form.prompt_token_ids.is_some().then(Vec::new),
            finish: None,
        };
        Self {
            server,
            has_prompt_logprobs: form.has_prompt_logprobs,
            prompt_logprobs: Vec::new(),
            as_token_ids: form.return_tokens_as_token_ids,
            answers: std::iter::repeat_with(answer).take(num_choices).collect(),
            prompt_token_ids: form.prompt_token_ids,
        }
    }

    pub(crate) fn push(&mut self, piece: Piece) {
        let answer = &mut self.answers[piece.index];
        answer.gathered.extend(answer.deltas.push(&piece));
        if let Some(logprobs) = &mut answer.logprobs {
            let as_token_ids = self.as_token_ids;
            let spelling = Spelling { tokenizer: self.server.tokenizer(), as_token_ids };
            logprobs.extend(&piece.tokens, spelling);
        }
        if let Some(token_ids) = &mut answer.token_ids {
            token_ids.extend(piece.token_ids);
        }
        self.prompt_logprobs.extend(piece.prompt_logprobs);
        answer.finish = piece.finish.or(answer.finish.take());
    }

    pub(crate) fn finish(self, usage: Usage) -> ChatCompletion {
        let tokenizer = self.server.tokenizer();
        let prompt_logprobs =
            self.has_prompt_logprobs.then(|| prompt_logprobs(&self.prompt_logprobs, tokenizer));
        ChatCompletion {
            id: unique_id("chatcmpl-"),
            object: "chat.completion",
            created: unix_time(),
            model: self.server.model_name().to_owned(),
            choices: self.answers.into_iter().enumerate().map(Answer::into_choice).collect(),
            usage: usage.into(),
            prompt_logprobs,
            prompt_token_ids: self.prompt_token_ids,
        }
    }
}

impl Answer {
    fn into_choice((index, answer): (usize, Self)) -> ChatChoice {
        let Self { deltas, gathered, logprobs, token_ids, finish } = answer;
        let finish = finish.unwrap_or(Finish::Length);
        let ChatAnswer { reasoning_content, content, tool_calls } = gathered;
        let is_only_calls = content.is_empty() && !tool_calls.is_empty();
        let tool_calls = tool_calls.into_iter().map(|call| ToolCall {
            id: unique_id("call_"),
            r#type: "function",
            function: Function { name: call.name, arguments: call.arguments },
        });
        ChatChoice {
            index,
            message: Message {
                role: "assistant",
                content: (!is_only_calls).then_some(content),
                refusal: None,
                reasoning: (!reasoning_content.is_empty())
                    .then(|| ReasoningText::new(reasoning_content)),
                tool_calls: tool_calls.collect(),
            },
            logprobs,
            finish_reason: deltas.finish_reason(&finish),
            stop_reason: StopReason::of(&finish),
            token_ids,
        }
    }
}

/// Answers as chunks.
#[derive(Debug)]
pub(crate) struct ChatChunks {
    server: Server,
    id: String,
    created: u64,
    has_logprobs: bool,
    as_token_ids: bool,
    prompt_token_ids: Option<Vec<TokenId>>,
    delivery: Delivery,
    answers: Vec<Deltas>,
}

#[derive(Debug, Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<ChunkChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<ChunkUsage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [TokenId]>,
}

#[derive(Debug, Serialize)]
struct ChunkChoice {
    index: usize,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<TokenId>>,
}

#[derive(Debug, Default, Serialize)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(flatten)]
    reasoning: Option<ReasoningText>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCallDelta>,
}

#[derive(Debug, Serialize)]
struct ToolCallDelta {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    function: FunctionDelta,
}

#[derive(Debug, Serialize)]
struct FunctionDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

impl ChatChunks {
    pub(crate) fn new(server: Server, form: Form, num_choices: usize, delivery: Delivery) -> Self {
        Self {
            server,
            id: unique_id("chatcmpl-"),
            created: unix_time(),
            has_logprobs: form.has_logprobs,
            as_token_ids: form.return_tokens_as_token_ids,
            delivery,
            answers: (0..num_choices).map(|_| Deltas::new(&form)).collect(),
            prompt_token_ids: form.prompt_token_ids,
        }
    }

    fn chunk(&self, choices: Vec<ChunkChoice>, usage: Usage) -> String {
        let is_first = |choice: &ChunkChoice| choice.delta.role.is_some();
        let prompt_token_ids =
            self.prompt_token_ids.as_deref().filter(|_| choices.iter().any(is_first));
        let usage = ChunkUsage::new(usage, choices.is_empty(), self.delivery);
        crate::sse::to_json(&Chunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: self.server.model_name(),
            choices,
            usage,
            prompt_token_ids,
        })
    }
}

impl Chunks for ChatChunks {
    fn begin(&mut self, usage: Usage) -> Vec<String> {
        let first = |index| {
            let (role, content) = (Some("assistant"), Some(String::new()));
            let delta = Delta { role, content, ..Delta::default() };
            let choice = ChunkChoice {
                index,
                delta,
                logprobs: None,
                finish_reason: None,
                stop_reason: None,
                token_ids: None,
            };
            self.chunk(vec![choice], usage)
        };
        (0..self.answers.len()).map(first).collect()
    }

    fn push(&mut self, piece: Piece, usage: Usage) -> Vec<String> {
        let Piece { index, ref tokens, ref finish, .. } = piece;
        let mut deltas: Vec<Delta> =
            self.answers[index].push(&piece).into_iter().map(Delta::from).collect();
        let mut logprobs = (self.has_logprobs && !tokens.is_empty()).then(|| {
            let mut logprobs = ChatLogprobs::default();
            let (tokenizer, as_token_ids) = (self.server.tokenizer(), self.as_token_ids);
            logprobs.extend(tokens, Spelling { tokenizer, as_token_ids });
            logprobs
        });
        let mut token_ids = Some(piece.token_ids.clone())
            .filter(|token_ids| self.prompt_token_ids.is_some() && !token_ids.is_empty());
        if deltas.is_empty() && (logprobs.is_some() || token_ids.is_some()) {
            deltas.push(Delta::default());
        }
        let texts = deltas.into_iter().map(|delta| ChunkChoice {
            index,
            delta,
            logprobs: logprobs.take(),
            finish_reason: None,
            stop_reason: None,
            token_ids: token_ids.take(),
        });
        let end = finish.as_ref().map(|finish| ChunkChoice {
            index,
            delta: Delta::default(),
            logprobs: None,
            finish_reason: Some(self.answers[index].finish_reason(finish)),
            stop_reason: StopReason::of(finish),
            token_ids: None,
        });
        texts.chain(end).map(|choice| self.chunk(vec![choice], usage)).collect()
    }

    fn end(&mut self, usage: Usage) -> Vec<String> {
        let last = self.delivery.include_usage.then(|| self.chunk(Vec::new(), usage));
        last.into_iter().collect()
    }
}

impl From<ChatDelta> for Delta {
    fn from(delta: ChatDelta) -> Self {
        let call = |index, id: Option<String>, name, arguments| {
            let function = FunctionDelta { name, arguments };
            let r#type = id.is_some().then_some("function");
            vec![ToolCallDelta { index, id, r#type, function }]
        };
        match delta {
            ChatDelta::Content(text) => Self { content: Some(text), ..Self::default() },
            ChatDelta::Reasoning(text) => {
                Self { reasoning: Some(ReasoningText::new(text)), ..Self::default() }
            }
            ChatDelta::ToolCallName { index, name } => Self {
                tool_calls: call(index, Some(unique_id("call_")), Some(name), String::new()),
                ..Self::default()
            },
            ChatDelta::ToolCallArguments { index, arguments } => {
                Self { tool_calls: call(index, None, None, arguments), ..Self::default() }
            }
        }
    }
}
