//! The tokens of a tokenizer as llguidance wants them.

use llguidance::toktrie::{TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use crate::tokenizer::Tokenizer;

/// A tokenizer and the tree of its tokens' bytes.
///
/// One token is added behind the last, which means that the text may end: which tokens say so is not the grammar's
/// business. Special tokens have no bytes, and nor have those that begin with a byte that is in no text: they never come.
pub(super) struct Vocabulary {
    tokenizer: Tokenizer,
    trie: TokTrie,
}

/// The byte that llguidance tells special tokens by; no UTF-8 has it.
const MARKER: u8 = TokTrie::SPECIAL_TOKEN_MARKER;

impl Vocabulary {
    /// # Panics
    /// If the tokens are of a kind that llguidance doesn't take: of thousands of bytes, for example.
    pub(super) fn new(tokenizer: &Tokenizer) -> Self {
        let num_ids = tokenizer.num_ids();
        let bytes = |id| match tokenizer.token_bytes(id) {
            bytes if tokenizer.is_special(id) || bytes.first() == Some(&MARKER) => Vec::new(),
            bytes => bytes,
        };
        let mut words: Vec<Vec<u8>> = (0..num_ids).map(bytes).collect();
        words.push(vec![MARKER]);
        let trie = TokTrie::from(&TokRxInfo::new(num_ids + 1, num_ids), &words);
        Self { tokenizer: tokenizer.clone(), trie }
    }

    /// The token that means the end.
    pub(super) fn end(&self) -> TokenId {
        self.trie.eos_token()
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    /// As the model has learnt to write it, where that is these bytes: a special token that is spelled out is not.
    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let encode = |text: &str| self.tokenizer.encode(text, false).unwrap_or_default();
        let token_ids = self.trie.tokenize_with_greedy_fallback(bytes, encode);
        let written = token_ids.iter().flat_map(|&id| self.trie.token(id));
        if written.eq(bytes) { token_ids } else { self.trie.greedy_tokenize(bytes) }
    }
}
