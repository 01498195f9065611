//! Follows a text through its grammar.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::Matcher;
use llguidance::toktrie::TokenId;

use crate::error::{Error, Result};

/// What a [`Grammar`](crate::Grammar) says of the tokens of a text. Clones share it.
#[derive(Clone)]
pub struct CompiledGrammar {
    /// Of a text that has not begun.
    matcher: Arc<Mutex<Matcher>>,
    end: TokenId,
}

/// A text that is held to a grammar, as far as it has come.
///
/// What may come next is a function of the tokens alone, and so is whether that is too complex to tell.
pub struct GrammarMatcher {
    matcher: Matcher,
    /// The token that stands for the end of the text.
    end: TokenId,
}

/// What may come next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextTokens {
    /// The tokens: token i is bit i % 32 of word i / 32. Those that no word has may not come.
    pub allowed: Vec<u32>,
    /// Whether the text may end here.
    pub may_end: bool,
}

impl CompiledGrammar {
    pub(super) fn new(matcher: Matcher, end: TokenId) -> Self {
        Self { matcher: Arc::new(Mutex::new(matcher)), end }
    }

    /// A text that has not begun.
    pub fn matcher(&self) -> GrammarMatcher {
        let matcher = self.matcher.lock().unwrap_or_else(PoisonError::into_inner);
        // Not a shallow clone, which would share an automaton that grows: one text's limits would be the other's.
        GrammarMatcher { matcher: matcher.deep_clone(), end: self.end }
    }
}

impl GrammarMatcher {
    /// The tokens that may come next.
    ///
    /// # Errors
    /// [`Error::Grammar`] if that is too complex to tell, or nothing can come: then nor will anything else.
    pub fn next_tokens(&mut self) -> Result<NextTokens> {
        if self.is_over() {
            return Ok(NextTokens { allowed: Vec::new(), may_end: true });
        }
        let mask = self.matcher.compute_mask().map_err(|error| refusal(&error.to_string()))?;
        let mut allowed = Vec::from(mask);
        let (word, bit) = (self.end as usize / 32, 1 << (self.end % 32));
        let may_end = allowed.get(word).is_some_and(|word| word & bit != 0);
        if let Some(word) = allowed.get_mut(word) {
            // And nothing behind the last token.
            *word &= bit - 1;
        }
        allowed.truncate(word + 1);
        Ok(NextTokens { allowed, may_end })
    }

    /// Goes on by a token that may come. Returns whether the text is complete: it may end, and nothing may follow.
    ///
    /// # Errors
    /// [`Error::Grammar`] if it may not come, or what follows is too complex to tell.
    pub fn push(&mut self, token_id: u32) -> Result<bool> {
        self.matcher.consume_token(token_id).map_err(|error| refusal(&error.to_string()))?;
        Ok(self.is_over())
    }

    fn is_over(&self) -> bool {
        self.matcher.is_stopped() && !self.matcher.is_error()
    }
}

impl fmt::Debug for CompiledGrammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompiledGrammar").finish_non_exhaustive()
    }
}

impl fmt::Debug for GrammarMatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarMatcher").finish_non_exhaustive()
    }
}

/// What llguidance says, without what it says for its makers.
pub(super) fn refusal(text: &str) -> Error {
    if text.contains("coerce_one_of") {
        let reason = "`oneOf`: expected schemas that exclude each other by their types, or by a required property \
                      that has another `const` in each: or use `anyOf`";
        return Error::grammar(reason);
    }
    let text = text.split("\n<").next().unwrap_or_default().trim();
    Error::grammar(text)
}
