//! The text of one continuation, from its tokens as they come.
//!
//! Knows nothing of how it is sent.

use std::sync::Arc;

use nv_engine::{FinishReason, RequestOutput, TokenId, TokenLogprobs};
use nv_text::{StopStrings, TokenStream, Tokenizer};

use crate::params::TextParams;

/// One continuation that is being generated.
#[derive(Debug)]
pub(crate) struct Choice {
    params: Arc<TextParams>,
    /// `None` once it has ended.
    stages: Option<(TokenStream, StopStrings)>,
    num_tokens: usize,
    /// Characters of the tokens' text.
    text_offset: usize,
}

/// What is new of a continuation.
#[derive(Debug, Default)]
pub(crate) struct Piece {
    /// Which one, of all that the request asked for.
    pub(crate) index: usize,
    /// Text that is certain.
    pub(crate) text: String,
    /// The tokens that came, their text being certain or not.
    pub(crate) tokens: Vec<PieceToken>,
    /// Those and the token that ended the text, if one did.
    pub(crate) token_ids: Vec<TokenId>,
    /// For the next tokens of the prompt, from its second on.
    pub(crate) prompt_logprobs: Vec<TokenLogprobs>,
    /// How it ended, in its last piece.
    pub(crate) finish: Option<Finish>,
}

/// A token of a continuation.
#[derive(Debug)]
pub(crate) struct PieceToken {
    /// If they were asked for.
    pub(crate) logprobs: Option<TokenLogprobs>,
    /// Characters of the continuation before it.
    pub(crate) text_offset: usize,
}

/// How a continuation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Finish {
    /// The model chose its own end, or what it is held to allows no more.
    Eos,
    /// It came to a token that the request named.
    StopToken(TokenId),
    /// It came to a string that the request named.
    StopString(String),
    /// It became as long as it may.
    Length,
}

impl Choice {
    pub(crate) fn new(params: Arc<TextParams>, tokenizer: &Tokenizer) -> Self {
        let stages = (tokenizer.stream(params.skip_special_tokens), params.stop.clone());
        Self { params, stages: Some(stages), num_tokens: 0, text_offset: 0 }
    }

    /// Whether its last piece has come.
    pub(crate) fn is_finished(&self) -> bool {
        self.stages.is_none()
    }

    /// How many tokens were generated, a stop token included.
    pub(crate) fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Takes up what the engine has added, which did not fail; what comes after the end is nothing.
    pub(crate) fn push(&mut self, output: RequestOutput) -> Piece {
        let mut piece = Piece { prompt_logprobs: output.prompt_logprobs, ..Piece::default() };
        let mut logprobs = output.logprobs.into_iter();
        for token_id in output.token_ids {
            if self.is_finished() {
                return piece;
            }
            let text_offset = self.text_offset;
            piece.tokens.push(PieceToken { logprobs: logprobs.next(), text_offset });
            self.push_token(token_id, &mut piece);
        }
        if let Some(Ok(reason)) = output.finished {
            self.finish(reason, &mut piece);
        }
        piece
    }

    fn push_token(&mut self, token_id: TokenId, piece: &mut Piece) {
        let Some((tokens, stop)) = &mut self.stages else { return };
        self.num_tokens += 1;
        piece.token_ids.push(token_id);
        let text = tokens.push(token_id);
        self.text_offset += text.chars().count();
        let check = stop.push_if(self.num_tokens > self.params.min_tokens, text);
        piece.text += check.text;
        if let Some(string) = check.stop_string {
            piece.finish = Some(Finish::StopString(string.to_owned()));
            self.stages = None;
        }
    }

    fn finish(&mut self, reason: FinishReason, piece: &mut Piece) {
        let mut finish = match reason {
            // As much the text's own end as a token that says so.
            FinishReason::Complete => Finish::Eos,
            _ => Finish::Length,
        };
        if let FinishReason::Stop { token_id } = reason {
            let is_asked_for = self.params.stop_token_ids.contains(&token_id);
            if is_asked_for && self.params.include_stop_str_in_output {
                self.push_token(token_id, piece);
            } else if !self.is_finished() {
                self.num_tokens += 1;
                piece.token_ids.push(token_id);
            }
            finish = if is_asked_for { Finish::StopToken(token_id) } else { Finish::Eos };
        }
        let Some((tokens, mut stop)) = self.stages.take() else { return };
        let may_end = self.num_tokens > self.params.min_tokens;
        piece.text += stop.push_if(may_end, &tokens.finish()).text;
        let check = stop.finish();
        piece.text += check.text;
        if let Some(string) = check.stop_string {
            finish = Finish::StopString(string.to_owned());
        }
        piece.finish = Some(finish);
    }
}

impl Finish {
    /// As the OpenAI API calls it.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Eos | Self::StopToken(_) | Self::StopString(_) => "stop",
            Self::Length => "length",
        }
    }
}
